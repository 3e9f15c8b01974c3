"""Skips: the rows that a sink leaves out, because it crashes at them or refuses them.

In: a row, the reason, and the version of the program.
Out: the rows that the sink is not given, live and in every replay.
Never: loses a skip: each is on disk before the sink continues behind its row.

`cursors/<sink>.skipped` holds a line of JSON for each: row, reason, version, wall_s.
The file decides about the content of the sink, as the journal does, and is copied with
the run. A line cut short by a crash had no effect yet, and is ignored.
"""

from __future__ import annotations

import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

from shared.files import sync_directory, sync_file
from shared.text import clean

REASON_MAX_CHARS: Final = 300


class Skip(NamedTuple):
    """A skipped row, the reason, and the version of the program that skipped it."""

    row: int
    reason: str
    version: str


class Skips:
    """The rows to skip: those of the recorded run, and those found at this destination."""

    def __init__(self, path: Path, recorded: Path | None = None) -> None:
        """Read the skips of both files. path: the file that new skips are added to.

        Raises:
            OSError: a file exists and can't be read or synced.
        """
        self.path = path
        # Sync before relying on it: the writer of the last line may have been killed before
        # its sync.
        if path.exists():
            _sync(path)
        found = [*read_skips(recorded), *read_skips(path)] if recorded else read_skips(path)
        self._by_row = {skip.row: skip for skip in found}

    def __contains__(self, row: object) -> bool:
        return row in self._by_row

    def __len__(self) -> int:
        return len(self._by_row)

    def add(self, row: int, reason: str) -> None:
        """Skip a row from now on; the skip is on disk when this returns.

        Raises:
            OSError: it can't be written; the row is then not skipped.
        """
        skip = Skip(row, clean(reason, REASON_MAX_CHARS), program_version())
        value = {**skip._asdict(), "wall_s": round(time.time(), 3)}
        line = json.dumps(value).encode() + b"\n"
        with self.path.open("ab+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            if file.read(1) not in (b"", b"\n"):
                line = b"\n" + line  # a crash has cut the last line short
            file.write(line)
        _sync(self.path)
        self._by_row[row] = skip


def read_skips(path: Path) -> list[Skip]:
    """Return the skips in a file, none if it does not exist; invalid lines are ignored.

    Raises:
        OSError: the file exists and can't be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return [skip for line in data.split(b"\n") if (skip := _parsed(line)) is not None]


def program_version() -> str:
    """Return the version of this program, as it is installed."""
    try:
        return metadata.version("training-telemetry")
    except metadata.PackageNotFoundError:
        return "unknown"


def _sync(path: Path) -> None:
    sync_file(path)
    sync_directory(path.parent)


def _parsed(line: bytes) -> Skip | None:
    try:
        value: Any = json.loads(line)
        row = value["row"]
        if type(row) is not int or row < 0:
            return None
        return Skip(row, clean(str(value["reason"])), clean(str(value["version"])))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
