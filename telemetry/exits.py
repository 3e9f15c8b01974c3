"""Exits: how commands that `telemetry run` started have ended, told to their sidecar.

In: the exit code of a command, from the process that waited for it.
Out: that code, to the sidecar of the data directory: now, or when it is there again.
Never: overrules a run that said itself how it ended.

    DATA_DIR/exits/<launch id>.json     {"exit_code": 3}

A file, and not a message: it reaches a sidecar that stands still at the moment, or that is
started tomorrow.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

from shared.ids import SESSION
from telemetry.files import read_json, write_json

KEPT_S: Final = 7 * 86_400.0
"""After so long nobody will come who waited for it."""


def tell_exit(data_dir: Path, launch_id: str, exit_code: int) -> None:
    """Leave word of how a command has ended.

    Raises:
        OSError: it can't be written.
    """
    directory = _directory(data_dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / f"{launch_id}.json", {"exit_code": exit_code})


class Exits:
    """The exits that were told of in one data directory. Not thread-safe."""

    def __init__(self, data_dir: Path) -> None:
        self._directory = _directory(data_dir)
        self._codes: dict[str, int] = {}

    def look(self) -> None:
        """Take in what is new, and remove what nobody waits for any more."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._directory.glob("*.json"):
                if path.stem not in self._codes and SESSION.fullmatch(path.stem):
                    self._take(path)

    def code_of(self, launch_id: str) -> int | None:
        """The exit code of a launch, or None while its command runs, for all we know."""
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
