"""Skips: the rows that a sink steps over, because it can't get past them.

In: a row, why, and which program found that.
Out: the rows that are withheld from the sink, live and in every replay.
Never: loses one: each is on disk before the sink goes on behind its row.

`cursors/<sink>.skipped` holds a line of JSON for each: row, reason, version, wall_s.
It is part of what decides about the sink's content, like the journal, and is copied with
the run. A line that a crash has cut short was not acted upon, and counts for nothing.
"""

from __future__ import annotations

import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

from shared.text import clean
from telemetry.journal.layout import sync_directory

REASON_MAX_CHARS: Final = 300


class Skip(NamedTuple):
    """A row that a sink steps over."""

    row: int
    reason: str
    version: str


class Skips:
    """The rows to step over: those of the recorded run, and those found at this destination."""

    def __init__(self, path: Path, recorded: Path | None = None) -> None:
        """Read them. path is where more are added.

        Raises:
            OSError: a file is there that can't be read, or not be synced.
        """
        self.path = path
        # Read is not synced: who wrote the last line may have been killed at that.
        if path.exists():
            _sync(path)
        found = [*read_skips(recorded), *read_skips(path)] if recorded else read_skips(path)
        self._by_row = {skip.row: skip for skip in found}

    def __contains__(self, row: object) -> bool:
        return row in self._by_row

    def __len__(self) -> int:
        return len(self._by_row)

    def add(self, row: int, reason: str) -> None:
        """Step over a row from now on; on disk when this returns.

        Raises:
            OSError: it can't be written. The row is not stepped over then.
        """
        skip = Skip(row, clean(reason, REASON_MAX_CHARS), program_version())
        value = {**skip._asdict(), "wall_s": round(time.time(), 3)}
        line = json.dumps(value).encode() + b"\n"
        with self.path.open("ab+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            if file.read(1) not in (b"", b"\n"):
                line = b"\n" + line  # behind what a crash has cut short
            file.write(line)
        _sync(self.path)
        self._by_row[row] = skip


def skipped_rows(run_dir: Path, sink: str) -> list[Skip]:
    """Return the rows of a run that a sink has stepped over, in the order of the rows.

    Raises:
        OSError: their file can't be read.
    """
    return sorted(read_skips(skips_path(run_dir / "cursors", sink)))


def skips_path(directory: Path, sink: str) -> Path:
    """Return where a sink's skips are; directory is where its cursor is."""
    return directory / f"{sink}.skipped"


def read_skips(path: Path) -> list[Skip]:
    """Return the skips in a file, none without one; lines that are none are passed over.

    Raises:
        OSError: it is there, and can't be read.
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
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
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
