"""Cursor: the durable position of one sink in a run's journal, kept across restarts.

In: the position that a sink has made durable.
Out: the position to continue from.
Never: reads the journal.

One process at a time holds the cursor of a (run, sink), by an exclusive flock on
`<sink>.lock`. The file is replaced atomically and synced at each commit:

    OUT_DIR/cursors/<sink>.json    one JSON object
      run_id   str    the run; a cursor of another run is refused
      journal  str    uuid of the journal whose rows are counted; empty if unknown
      row      int    the row after the last one that is safely in the sink
      state    dict   what the sink needs to continue there; its layout is the sink's own
      done     bool   true if the sink has all of the run, as of the end numbered `ending`
      ending   int    `endings` of run.json when the sink finished; 0 while it is at work
      wall_s   float  time of the commit, in seconds since 1970

A run can end more than once, because late events reopen it: the sink is done only while
`ending` equals `endings` of run.json. OUT_DIR is the run's directory for a live sink.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from telemetry.journal.layout import make_durably
from telemetry.json_files import read_json, write_json
from telemetry.sinks.base import START, Position


def sink_is_done(cursor: dict[str, Any] | None, run_info: dict[str, Any]) -> bool:
    """Return True if a sink has all of a run, as of the last time that the run ended.

    cursor: the content of the sink's cursor file, None where it can't be read.
    run_info: the content of run.json. Late events reopen a run, which then ends again: a
    sink that was done with an earlier end has more rows to write.
    """
    if cursor is None or cursor.get("done") is not True:
        return False
    if {"run_id"} <= cursor.keys() & run_info.keys() and cursor["run_id"] != run_info["run_id"]:
        return False
    ending, endings = cursor.get("ending", 0), run_info.get("endings", 0)
    # A damaged file may hold any type here, and True would be equal to 1.
    return type(ending) is int and type(endings) is int and ending == endings


class CursorLocked(Exception):
    """Error: another process is running this sink for this run."""


class OtherJournal(Exception):
    """Error: the cursor counts the rows of another journal than the one to be read."""


class Cursor:
    """The cursor file of one sink, locked while it is held."""

    def __init__(self, out_dir: Path, sink: str, run_id: str, journal: str = "") -> None:
        """Lock and read the cursor. journal: uuid of the journal whose rows it counts.

        Raises:
            CursorLocked: another process has it.
            OtherJournal: it counts rows of another journal.
            OSError: the directory can't be written.
            ValueError: it belongs to another run, or is damaged.
        """
        directory = out_dir / "cursors"
        # A commit is durable only if the names of its directories are.
        make_durably(directory)
        self.path = directory / f"{sink}.json"
        self._run_id = run_id
        self.journal = journal
        self._fd = os.open(directory / f"{sink}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self.close()
            raise CursorLocked(f"{self.path} is held by another process") from exc
        except OSError as exc:
            self.close()
            raise OSError(exc.errno, f"{directory} can't be locked: {exc.strerror}") from exc
        try:
            self.position, self.is_done, self._ending = _read(self.path, run_id, journal)
        except BaseException:
            self.close()
            raise

    def commit(self, position: Position, *, is_done: bool = False, ending: int = 0) -> None:
        """Store a position durably; nothing is written if nothing changed.

        is_done: the sink has all of the run, as of the run's end numbered `ending`.
        """
        state = (position, is_done, ending)
        if state == (self.position, self.is_done, self._ending):
            return
        value = {
            "run_id": self._run_id,
            "journal": self.journal,
            "row": position.row,
            "state": position.state,
            "done": is_done,
            "ending": ending,
            "wall_s": round(time.time(), 3),
        }
        write_json(self.path, value)
        self.position, self.is_done, self._ending = state

    def close(self) -> None:
        """Release the lock. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Cursor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _read(path: Path, run_id: str, journal: str) -> tuple[Position, bool, int]:
    value = read_json(path)
    if value is None:
        return START, False, 0
    if value.get("run_id") != run_id:
        raise ValueError(f"{path} belongs to run {value.get('run_id')}, not to {run_id}")
    known = value.get("journal") or journal
    if journal and known != journal:
        raise OtherJournal(
            f"{path} counts rows of journal {known}, and this one is {journal}: a row number "
            "means nothing in another journal. Send this one to another place, or as another run"
        )
    try:
        row, ending = int(value["row"]), int(value.get("ending", 0))
        position = Position(row, dict(value["state"]))
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise ValueError(f"{path} is damaged: {exc!r}") from exc
    if row < 0:
        raise ValueError(f"{path} is damaged: row {row}")
    return position, value.get("done") is True, ending
