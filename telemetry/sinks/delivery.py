"""Delivery: brings the rows of one run to one open sink, and commits its position.

In: the journal of a run, and a sink that is made for it.
Out: the sink, holding each event that its policy selects exactly once.
Never: moves the cursor past what the sink has made durable.

Not thread-safe: the main thread of the sink's process owns it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from telemetry.journal.reader import CHUNK_BYTES, JournalReader
from telemetry.journal.rows import Row
from telemetry.run_dir import RunDir, RunFile, read
from telemetry.sinks.account import Account
from telemetry.sinks.base import Flushing, Position, Sink, SinkContext, left_out_of
from telemetry.sinks.cursor import Cursor
from telemetry.sinks.registry import make_sink
from telemetry.sinks.reporter import Reporter
from telemetry.sinks.slot import COMMITTING, FINISHING, IDLE


class Pace(NamedTuple):
    """The pace of one delivery. Tests make it faster, and its parts smaller.

    poll_s: pause at the end of what is on disk; quick_poll_s: while rows come, for a sink
    whose readers see them at once. commit_interval_s: between two commits.
    write_rows: rows at most in one call of write, so that a call with much to do does not
    seem to hang. read_bytes: size of one read of the journal.
    """

    poll_s: float = 0.2
    quick_poll_s: float = 0.05
    commit_interval_s: float = 1.0
    write_rows: int = 500
    read_bytes: int = CHUNK_BYTES


PACE: Final = Pace()
QUICK_FOR_S: Final = 1.0
"""Time after the last row for which more rows are looked for quickly."""


@dataclass(frozen=True)
class SinkJob:
    """One run, one sink, and the directory that the sink writes to.

    make: function that makes the sink, by its name.
    """

    sink: str
    run_dir: Path
    out_dir: Path
    follow: bool
    options: dict[str, str]
    make: Callable[[str, SinkContext], Sink] = make_sink
    pace: Pace = PACE


class Delivery:
    """One process's delivery of a run to a sink."""

    def __init__(
        self,
        job: SinkJob,
        run: RunFile,
        sink: Sink,
        cursor: Cursor,
        account: Account,
        stop: threading.Event,
        report: Reporter,
    ) -> None:
        self._job, self._run, self._sink, self._cursor = job, run, sink, cursor
        self._account, self._stop, self._report = account, stop, report
        self._place = RunDir(job.run_dir)
        self._committed_s = 0.0
        self._flushing = sink if isinstance(sink, Flushing) else None
        self._has_new = False
        """True if rows were written that readers may not see yet."""
        self._grown_s = float("-inf")
        """Monotonic time at which there were last rows to write."""

    def run(self) -> bool:
        """Deliver rows until the run has ended, or until stop. Return True if the sink has all.

        With follow, a stop takes effect only at the end of what is on disk.
        """
        # Open the sink: it says from which row on it needs the journal.
        first_row = self._sink.open(self._cursor.position)
        self._report.left_out = left_out_of(self._cursor.position)
        self._committed_s = time.monotonic()
        is_recorded, pace = not self._job.follow, self._job.pace
        with JournalReader(
            self._place.journal, first_row, is_recorded=is_recorded, chunk_bytes=pace.read_bytes
        ) as reader:
            while (is_done := self._poll(reader)) is None:
                pass
        return is_done

    def _poll(self, reader: JournalReader) -> bool | None:
        """Deliver what can be read at once. Return True at the end, False at a stop, else None."""
        # 1. Read run.json before the journal: if it says "ended", the read sees all rows.
        if self._job.follow:
            self._run = read(self._place.run_file, RunFile) or RunFile()
        is_stopping = self._stop.is_set()
        batch = reader.read()
        # 2. Write the rows, without the skipped ones.
        if not self._write(batch.rows):
            return False
        if batch.rows:
            self._has_new, self._grown_s = True, time.monotonic()
        is_commit_due = time.monotonic() - self._committed_s >= self._job.pace.commit_interval_s
        if batch.rows and not batch.is_end and not is_commit_due:
            return None
        # 3. At the end of an ended run: finish, and mark the sink as done.
        if batch.is_end and not reader.is_blind and self._is_over():
            self._finish(reader.next_row)
            return True
        # 4. Show what was written, and commit about once a second.
        if self._has_new and self._flushing is not None:
            self._flushing.flush()
        self._has_new = False
        if time.monotonic() - self._committed_s >= self._job.pace.commit_interval_s or is_stopping:
            self._commit()
        # 5. Report; at the end of what is on disk, stop or wait for more.
        self._report("running", reader.next_row)
        if batch.is_end:
            if is_stopping:
                return False
            self._stop.wait(self._pause_s())
        return None

    def _write(self, rows: Sequence[Row]) -> bool:
        """Write rows in parts; return False if asked to stop meanwhile, without follow."""
        slot, size = self._account.slot, self._job.pace.write_rows
        for at in range(0, len(rows), size):
            part = rows[at : at + size]
            self._sink.write(slot.announced(self._account.kept(part)))
            slot.enter(IDLE)
            self._report("running", part[-1].row + 1)
            if self._stop.is_set() and not self._job.follow:
                self._cursor.commit(self._sink.commit())
                return False
        return True

    def _pause_s(self) -> float:
        """Return how long to wait for more rows."""
        pace = self._job.pace
        is_quick = time.monotonic() - self._grown_s < QUICK_FOR_S and self._flushing is not None
        return min(pace.quick_poll_s, pace.poll_s) if is_quick else pace.poll_s

    def _commit(self) -> None:
        self._account.slot.enter(COMMITTING)
        self._cursor.commit(self._sink.commit())
        self._report.left_out = left_out_of(self._cursor.position)
        self._account.slot.enter(IDLE)
        self._committed_s = time.monotonic()

    def _finish(self, next_row: int) -> None:
        self._report("finishing", next_row)
        self._account.slot.enter(FINISHING)
        position = self._sink.finish(self._run.status, self._run.exit_code)
        position = self._behind_skips(position, next_row)
        self._cursor.commit(position, is_done=True, ending=self._run.endings or 0)
        self._report.left_out = left_out_of(position)
        self._report("done", position.row)

    def _behind_skips(self, position: Position, next_row: int) -> Position:
        """Move a final position behind skipped rows at the end, which the sink was not given."""
        rest = range(position.row, next_row)
        is_rest_skipped = all(row in self._account.skips for row in rest)
        return position._replace(row=max(position.row, next_row)) if is_rest_skipped else position

    def _is_over(self) -> bool:
        """True if the journal will not grow: run.json was read before the end was found."""
        return not self._job.follow or self._run.is_ended
