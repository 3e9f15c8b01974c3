"""Runner: the process of one sink of one run, from the lock on its cursor to its exit code.

In: the directories of a run and of a sink.
Out: an exit code, a report and one log line for whatever ends the delivery.
Never: writes to the journal.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import closing
from dataclasses import replace
from typing import Final

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
from telemetry.recorded import open_recorded
from telemetry.run_dir import RunDir, RunFile, read
from telemetry.sinks.account import Account
from telemetry.sinks.base import (
    SinkBehind,
    SinkContext,
    SinkRejected,
    SinkUnavailable,
)
from telemetry.sinks.cursor import Cursor, CursorLocked, OtherJournal
from telemetry.sinks.delivery import Delivery, SinkJob
from telemetry.sinks.reporter import Reporter
from telemetry.sinks.surroundings import own_surroundings

__all__ = ["Reporter", "SinkJob", "run_sink", "stop_with_stdin"]

log = logging.getLogger("telemetry.sink")

ORPHAN_GRACE_S: Final = 60.0
"""Time that a sink has to stop by itself after its supervisor is gone."""


def run_sink(job: SinkJob, stop: threading.Event, report: Reporter) -> int:
    """Deliver rows until the run has ended (or, without follow, to the end of its journal).

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
    """Deliver rows; turn every failure into an exit code, a report and one log line."""
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
    """Make the sink, deliver rows, and close it. Return True if it has all of the run.

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
        sink = job.make(job.sink, context)
        try:
            return Delivery(job, run, sink, cursor, account, stop, report).run()
        finally:
            sink.close()
    except (SinkUnavailable, SinkRejected, ImportError):
        raise
    except Exception as exc:
        raise _Crashed(account.note_crash(exc)) from exc


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
        if stop.wait(job.pace.poll_s):
            return None


def stop_with_stdin(stop: threading.Event) -> None:
    """Stop the sink when standard input closes, which its supervisor holds open.

    A sink that hangs is ended after ORPHAN_GRACE_S: it would keep the lock from the next one.
    """

    def watch() -> None:
        while os.read(0, 1024):
            pass
        stop.set()
        time.sleep(ORPHAN_GRACE_S)
        os._exit(EXIT_BACKLOG)

    threading.Thread(target=watch, name="stdin", daemon=True).start()
