"""Exits: files that tell a sidecar the exit codes of commands started by `telemetry run`.

In: the exit code of a command, from the process that waited for it.
Out: that code, to the sidecar of the data directory: now, or when it is there again.
Never: replaces the status of a run whose own RunFinished was recorded.

    DATA_DIR/exits/<launch id>.json     {"exit_code": 3, "oom_kills": 0, "stderr": "..."}

A file, and not a message: it also reaches a sidecar that is frozen now, or started later.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Protocol

import msgspec

from shared.closing import Closing
from shared.ids import SESSION
from telemetry.json_files import read_json, write_json
from telemetry.run_dir import Process

STDERR_MAX_CHARS: Final = 16_000
EXIT_WAIT_S: Final = 0.5
"""Wait for a process whose end is under way: it closes its pipes before it is over."""
KEPT_S: Final = 7 * 86_400.0
"""Age at which a file is removed, in seconds."""


class ExitReport(msgspec.Struct, frozen=True):
    """The end of a command, as its parent saw it.

    oom_kills: processes of this container that the kernel killed while the command ran, for
    want of memory; None where it does not count them. stderr: the last lines of its
    standard error, without secrets.
    """

    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)]
    oom_kills: Annotated[int, msgspec.Meta(ge=0)] | None = None
    stderr: Annotated[str, msgspec.Meta(max_length=STDERR_MAX_CHARS)] = ""


@dataclass(frozen=True)
class Kills:
    """Processes that the kernel has killed for want of memory; None where it does not count.

    group: those of this container. machine: those of the whole machine.
    """

    group: int | None
    machine: int | None

    def since(self, before: Kills) -> Kills:
        """Return the kills that came after the counts of before."""
        return Kills(_added(before.group, self.group), _added(before.machine, self.machine))


def _added(before: int | None, now: int | None) -> int | None:
    return None if before is None or now is None else max(0, now - before)


@dataclass(frozen=True)
class Ending:
    """The end of a trainer's process, as far as this machine can tell.

    exit_code: as a shell has it, 128 + n for signal n; None where it is not known.
    is_alive: the process is still there. kills: since it was first seen.
    """

    pid: int
    is_alive: bool
    exit_code: int | None
    kills: Kills


class OpenRun(Protocol):
    """The part of an open run that names its processes."""

    run_id: str

    @property
    def is_ended(self) -> bool: ...
    @property
    def processes(self) -> dict[str, Process]: ...


class Ends(Closing):
    """The ends of processes that are nobody's children here; this one knows of none."""

    def look(self, runs: Iterable[OpenRun]) -> None:
        """Hold the processes of new runs, and let go of those of runs that have ended."""

    def ending_of(self, run: OpenRun, wait_s: float = 0.0) -> Ending | None:
        """Return what is known of the end of a run's process, None if it was never seen here.

        wait_s: how long an end that is under way may take; at most EXIT_WAIT_S.
        """
        return None

    def close(self) -> None:
        """Let go of all processes. May be called twice."""


def tell_exit(data_dir: Path, launch_id: str, report: ExitReport) -> None:
    """Write the end of a command where the sidecar of data_dir finds it.

    Raises:
        OSError: it can't be written.
    """
    directory = _directory(data_dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / f"{launch_id}.json", msgspec.to_builtins(report))


class Exits:
    """The exit codes found in one data directory, by launch id. Not thread-safe."""

    def __init__(self, data_dir: Path) -> None:
        self._directory = _directory(data_dir)
        self._reports: dict[str, ExitReport] = {}

    def look(self) -> None:
        """Read new files, and remove those older than KEPT_S."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._directory.glob("*.json"):
                if path.stem not in self._reports and SESSION.fullmatch(path.stem):
                    self._take(path)

    def code_of(self, launch_id: str) -> int | None:
        """Return the exit code of a launch, or None while no file has told it."""
        report = self._reports.get(launch_id)
        return None if report is None else report.exit_code

    def report_of(self, launch_id: str) -> ExitReport | None:
        """Return all that is known of the end of a launch, or None while nothing is."""
        return self._reports.get(launch_id)

    def _take(self, path: Path) -> None:
        with contextlib.suppress(msgspec.MsgspecError, ValueError):
            self._reports[path.stem] = msgspec.convert(read_json(path), ExitReport)
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()


def _directory(data_dir: Path) -> Path:
    return data_dir / "exits"
