"""Exits: files that tell a sidecar the exit codes of commands started by `telemetry run`.

In: the exit code of a command, from the process that waited for it.
Out: that code, to the sidecar of the data directory: now, or when it is there again.
Never: replaces the status of a run whose own RunFinished was recorded.

    DATA_DIR/exits/<launch id>.json     {"exit_code": 3}

A file, and not a message: it also reaches a sidecar that is frozen now, or started later.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

from shared.ids import SESSION
from telemetry.json_files import read_json, write_json

KEPT_S: Final = 7 * 86_400.0
"""Age at which a file is removed, in seconds."""


def tell_exit(data_dir: Path, launch_id: str, exit_code: int) -> None:
    """Write the exit code of a command where the sidecar of data_dir finds it.

    Raises:
        OSError: it can't be written.
    """
    directory = _directory(data_dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / f"{launch_id}.json", {"exit_code": exit_code})


class Exits:
    """The exit codes found in one data directory, by launch id. Not thread-safe."""

    def __init__(self, data_dir: Path) -> None:
        self._directory = _directory(data_dir)
        self._codes: dict[str, int] = {}

    def look(self) -> None:
        """Read new files, and remove those older than KEPT_S."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._directory.glob("*.json"):
                if path.stem not in self._codes and SESSION.fullmatch(path.stem):
                    self._take(path)

    def code_of(self, launch_id: str) -> int | None:
        """Return the exit code of a launch, or None while no file has told it."""
        return self._codes.get(launch_id)

    def _take(self, path: Path) -> None:
        code = (read_json(path) or {}).get("exit_code")
        if type(code) is int and 0 <= code <= 255:
            self._codes[path.stem] = code
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()


def _directory(data_dir: Path) -> Path:
    return data_dir / "exits"
