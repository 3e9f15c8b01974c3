"""A sidecar whose disk stands still on demand: syncs wait for as long as a file is there.

In: `python -m tests.faults.stalling_sidecar`, with what `python -m telemetry` takes; and
the path of the file in the environment variable TM_STALL_FILE.
Out: as the sidecar's own, but for syncs that take as long as the test says.
Never: stalls for more than three minutes, or any process but itself.

`fsfreeze` does the same to a whole file system, and needs root and a loop mount:
see `test_processes`. Here a stall can come at any moment of a run, and hits what
the sidecar syncs, journals and run.json alike.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from shared import programs
from telemetry import guard

STALL_FILE = "TM_STALL_FILE"
STALL_MAX_S = 180.0


def stalling(sync: Callable[[int], None], file: Path) -> Callable[[int], None]:
    """The sync, after the disk goes on."""

    def synced(fd: int) -> None:
        deadline_s = time.monotonic() + STALL_MAX_S
        while file.exists() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        sync(fd)

    return synced


def guard_here(flags: Sequence[str]) -> NoReturn:
    """Guard the service in this program: another one would not know of the stalls."""
    assert __spec__ is not None
    command = programs.module_command(__spec__.name, "serve", *flags)
    sys.exit(guard.Guard(command, programs.module_environ(os.environ)).run())


def main() -> int:
    file = Path(os.environ[STALL_FILE])
    os.fsync = stalling(os.fsync, file)  # type: ignore[assignment]
    os.fdatasync = stalling(os.fdatasync, file)
    guard.become_guard = guard_here
    from telemetry.cli import main as telemetry_main

    return telemetry_main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
