"""Runner: carries one run's journal into one sink, and commits its position.

In: the journal of a run, and the sink's cursor.
Out: the sink, holding each event that its policy selects exactly once.
Never: writes to the journal, or moves the cursor past what the sink has made durable.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from telemetry.errors import (
    EXIT_BACKLOG,
    EXIT_CRASHED,
    EXIT_FAULT,
    EXIT_OK,
    EXIT_RUNNING,
    CommandError,
)
from telemetry.journal.identity import journal_uuid
from telemetry.journal.layout import segments
from telemetry.journal.reader import JournalReader
from telemetry.journal.rows import Row
from telemetry.recorded import open_recorded
from telemetry.run_dir import RunDir, RunFile, read
from telemetry.sinks.account import Account
from telemetry.sinks.base import (
    Position,
    Sink,
    SinkBehind,
    SinkContext,
    SinkRejected,
    SinkUnavailable,
    left_out_of,
)
from telemetry.sinks.cursor import Cursor, CursorLocked, OtherJournal
from telemetry.sinks.registry import make_sink
from telemetry.sinks.slot import COMMITTING, FINISHING, IDLE
from telemetry.sinks.surroundings import own_surroundings

log = logging.getLogger("telemetry.sink")

POLL_S: Final = 0.2
COMMIT_INTERVAL_S: Final = 1.0
WRITE_ROWS: Final = 500
"""Rows at most in one call of write, so that a call with much to do does not seem to hang."""


@dataclass(frozen=True)
class SinkJob:
    """One run, one sink, and the directory that the sink writes to."""

    sink: str
    run_dir: Path
    out_dir: Path
    follow: bool
    options: dict[str, str]


class Reporter:
    """Reports to the supervisor, in JSON lines, that this process is alive and at which row."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._skips: Sized = ()
        self.left_out = 0
        """Number of values that the sink has no place for, from its position."""
        self.is_said = False
        """True if the detail of the next report was logged already."""

    @property
    def is_heard(self) -> bool:
        """True if a supervisor reads the reports, and logs changes of state."""
        return self._fd is not None

    def count_skips(self, skips: Sized) -> None:
        """Include the number of skipped rows in the reports."""
        self._skips = skips

    def __call__(self, state: str, row: int, detail: str = "") -> None:
        if self._fd is None:
            return
        told: dict[str, Any] = {"state": state, "row": row, "detail": detail}
        told |= {"skipped": len(self._skips), "said": self.is_said}
        if self.left_out:
            told["left_out"] = self.left_out
        line = json.dumps(told) + "\n"
        try:
            os.write(self._fd, line.encode())
        except OSError:
            self._fd = None  # the supervisor has closed the pipe


def run_sink(job: SinkJob, stop: threading.Event, report: Reporter) -> int:
    """Carry rows until the run has ended (or, without follow, to the end of its journal).

    Returns the exit code of the command: 0 done, 1 crashed, 3 try again later, 4 never.

    Raises:
        CommandError: not a run, or another process runs this sink.
    """
    # Absolute, because the sink runs in a working directory of its own.
    run_dir, out_dir = job.run_dir.absolute(), job.out_dir.absolute()
    job = replace(job, run_dir=run_dir, out_dir=out_dir)
    run = _await_run(job, stop)
    if run is None:
        return EXIT_OK
    run_id = run.run_id
    try:
        journal = journal_uuid(RunDir(job.run_dir).journal)
        cursor = Cursor(job.out_dir, job.sink, run_id, journal)
    except CursorLocked as exc:
        raise CommandError(f"sink {job.sink} of run {run_id}: {exc}", EXIT_RUNNING) from exc
    except OtherJournal as exc:
        return _rejected(job, run_id, 0, exc, report)
    except (OSError, ValueError) as exc:
        raise CommandError(f"sink {job.sink} of run {run_id}: {exc}") from exc
    with cursor, own_surroundings(cursor.path.parent) as defaults:
        options = {**defaults, **job.options}
        return _guarded(replace(job, options=options), run, cursor, stop, report)


def _guarded(
    job: SinkJob,
    run: RunFile,
    cursor: Cursor,
    stop: threading.Event,
    report: Reporter,
) -> int:
    """Carry rows; turn every failure into an exit code, a report and one log line."""
    report("opening", cursor.position.row)
    run_id = run.run_id
    account = None
    try:
        with closing(_account(job, cursor, run_id)) as account:
            report.count_skips(account.skips)
            is_done = _opened(job, run, cursor, account, stop, report)
    except (SinkUnavailable, ImportError) as exc:
        report.is_said = isinstance(exc, SinkBehind)
        report("unavailable", cursor.position.row, str(exc)[:300])
        if not report.is_heard:
            log.warning("sink=%s run=%s unavailable: %s", job.sink, run_id, exc)
        return EXIT_BACKLOG
    except SinkRejected as exc:
        return _rejected(job, run_id, cursor.position.row, exc, report)
    except _Crashed as exc:
        report.is_said = True
        report("crashed", cursor.position.row, str(exc))
        return EXIT_CRASHED
    # With follow, the runner stops only at the end of what is on disk: that is no backlog.
    return EXIT_OK if is_done or job.follow else EXIT_BACKLOG


class _Crashed(Exception):
    """Error: the sink raised something unexpected, logged already. The message is one line."""


def _account(job: SinkJob, cursor: Cursor, run_id: str) -> Account:
    return Account(RunDir(job.out_dir), RunDir(job.run_dir), job.sink, run_id)


def _rejected(job: SinkJob, run_id: str, row: int, exc: Exception, report: Reporter) -> int:
    report("rejected", row, str(exc)[:300])
    log.error("sink=%s run=%s rejected: %s", job.sink, run_id, exc)
    return EXIT_FAULT


def _opened(
    job: SinkJob,
    run: RunFile,
    cursor: Cursor,
    account: Account,
    stop: threading.Event,
    report: Reporter,
) -> bool:
    """Make the sink, carry rows, and close it. Return True if it has all of the run.

    Raises:
        SinkUnavailable, SinkRejected: raised by the sink.
        _Crashed: the sink raised anything else.
    """

    def wait(seconds: float) -> bool:
        report("waiting", cursor.position.row)
        return stop.wait(seconds)

    context = SinkContext(
        run.run_id, job.out_dir, run, job.options, wait,
        cursor.journal, account.skips, account.skip,
    )  # fmt: skip
    try:
        sink = make_sink(job.sink, context)
        try:
            return _carry(job, run, sink, cursor, account, stop, report)
        finally:
            sink.close()
    except (SinkUnavailable, SinkRejected, ImportError):
        raise
    except Exception as exc:
        raise _Crashed(account.note_crash(exc)) from exc


def _carry(
    job: SinkJob,
    run: RunFile,
    sink: Sink,
    cursor: Cursor,
    account: Account,
    stop: threading.Event,
    report: Reporter,
) -> bool:
    """Carry rows until the run has ended, or until stop. Return True if the sink has all.

    With follow, a stop takes effect only at the end of what is on disk.
    """
    # Open the sink: it says from which row on it needs the journal.
    first_row, slot = sink.open(cursor.position), account.slot
    report.left_out = left_out_of(cursor.position)
    committed_s = time.monotonic()
    place = RunDir(job.run_dir)
    with JournalReader(place.journal, first_row, is_recorded=not job.follow) as reader:
        while True:
            # 1. Read run.json before the journal: if it says "ended", the read sees all rows.
            if job.follow:
                run = read(place.run_file, RunFile) or RunFile()
            is_stopping = stop.is_set()
            batch = reader.read()
            # 2. Write the rows, without the skipped ones.
            for rows in _chunks(batch.rows):
                sink.write(slot.announced(account.kept(rows)))
                slot.enter(IDLE)
                report("running", rows[-1].row + 1)
                if stop.is_set() and not job.follow:
                    cursor.commit(sink.commit())
                    return False
            if (
                batch.rows
                and not batch.is_end
                and time.monotonic() - committed_s < (COMMIT_INTERVAL_S)
            ):
                continue
            # 3. At the end of an ended run: finish, and mark the sink as done.
            if batch.is_end and not reader.is_blind and _is_over(job, run):
                report("finishing", reader.next_row)
                slot.enter(FINISHING)
                position = sink.finish(run.status, run.exit_code)
                position = _behind_skips(position, reader.next_row, account)
                cursor.commit(position, is_done=True, ending=run.endings or 0)
                report.left_out = left_out_of(position)
                report("done", position.row)
                return True
            # 4. Commit, about once a second.
            if time.monotonic() - committed_s >= COMMIT_INTERVAL_S or is_stopping:
                slot.enter(COMMITTING)
                cursor.commit(sink.commit())
                report.left_out = left_out_of(cursor.position)
                slot.enter(IDLE)
                committed_s = time.monotonic()
            # 5. Report; at the end of what is on disk, stop or wait for more.
            report("running", reader.next_row)
            if batch.is_end:
                if is_stopping:
                    return False
                stop.wait(POLL_S)


def _behind_skips(position: Position, next_row: int, account: Account) -> Position:
    """Move a final position behind skipped rows at the end, which the sink was not given."""
    is_rest_skipped = all(row in account.skips for row in range(position.row, next_row))
    return position._replace(row=max(position.row, next_row)) if is_rest_skipped else position


def _is_over(job: SinkJob, run: RunFile) -> bool:
    """True if the journal will not grow. run must be older than the read that found its end."""
    return not job.follow or run.is_ended


def _chunks(rows: Sequence[Row]) -> list[Sequence[Row]]:
    return [rows[at : at + WRITE_ROWS] for at in range(0, len(rows), WRITE_ROWS)]


def _await_run(job: SinkJob, stop: threading.Event) -> RunFile | None:
    """Wait for run.json to name the run, and return it; None if stopped before.

    Without follow the run is recorded already, and its journal alone is enough.
    """
    if not job.follow:
        return open_recorded(job.run_dir).facts
    place = RunDir(job.run_dir)
    while True:
        run = read(place.run_file, RunFile)
        if run is not None and run.is_shown and segments(place.journal):
            return run
        if stop.wait(POLL_S):
            return None
