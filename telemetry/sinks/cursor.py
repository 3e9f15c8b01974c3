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

import os
import time
from pathlib import Path

import msgspec

from shared.closing import Closing
from shared.files import make_directory
from shared.locks import Locked, lock
from telemetry.json_files import DamagedFile, read_json, write_json
from telemetry.run_dir import CursorFile, RunDir, typed
from telemetry.sinks.base import START, Position


class CursorLocked(Exception):
    """Error: another process is running this sink for this run."""


class OtherJournal(Exception):
    """Error: the cursor counts the rows of another journal than the one to be read."""


class Cursor(Closing):
    """The cursor file of one sink, locked while it is held."""

    def __init__(self, out_dir: Path, sink: str, run_id: str, journal: str = "") -> None:
        """Lock and read the cursor. journal: uuid of the journal whose rows it counts.

        Raises:
            CursorLocked: another process has it.
            OtherJournal: it counts rows of another journal.
            OSError: the directory can't be written.
            ValueError: it belongs to another run, or is damaged.
        """
        place = RunDir(out_dir)
        # A commit is durable only if the names of its directories are.
        make_directory(place.cursors)
        self.path = place.cursor(sink)
        self._run_id = run_id
        self.journal = journal
        self._fd = os.open(place.lock(sink), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            lock(self._fd)
        except Locked as exc:
            self.close()
            raise CursorLocked(f"{self.path} is held by another process") from exc
        except OSError as exc:
            self.close()
            raise OSError(exc.errno, f"{place.cursors} can't be locked: {exc.strerror}") from exc
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
        file = CursorFile(
            run_id=self._run_id,
            journal=self.journal,
            row=position.row,
            state=position.state,
            done=is_done,
            ending=ending,
            wall_s=round(time.time(), 3),
        )
        write_json(self.path, msgspec.structs.asdict(file))
        self.position, self.is_done, self._ending = state

    def close(self) -> None:
        """Release the lock. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _read(path: Path, run_id: str, journal: str) -> tuple[Position, bool, int]:
    """Return the position, and the end of the run that the sink is done with.

    A file that holds no JSON object, as a disk may leave it, counts as none: the sink itself
    then finds what it has. One of another run or journal, or with wrong values, is refused.
    """
    values = read_json(path)
    if values is None:
        return START, False, 0
    if values.get("run_id") != run_id:
        raise ValueError(f"{path} belongs to run {values.get('run_id')}, not to {run_id}")
    if "row" not in values or "state" not in values:
        raise ValueError(f"{path} is damaged: it has no row, or no state")
    try:
        file = typed(values, CursorFile, str(path))
    except DamagedFile as exc:
        raise ValueError(str(exc)) from exc
    known = file.journal or journal
    if journal and known != journal:
        raise OtherJournal(
            f"{path} counts rows of journal {known}, and this one is {journal}: a row number "
            "means nothing in another journal. Send this one to another place, or as another run"
        )
    return Position(file.row, file.state), file.done, file.ending
