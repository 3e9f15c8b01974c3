"""Runs: the directory, the journal and run.json of each run.

In: the events of a run, in the order of its journal.
Out: run.json, for people, tools and sinks.
Never: trusts run.json alone: rows that were journaled after it was written are read again.

    running --the newest main session has finished, others are over--> ended
    running --no producer was heard for lost_after_s-----------------> ended (lost)
    ended ----a new session, or late events--------------------------> running
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from shared.clock import Clock
from shared.events import (
    ConfigUpdated,
    DecodeError,
    Event,
    RunFinished,
    RunStarted,
    encode_event,
    join_events,
)
from shared.ids import check_run_id
from telemetry.journal.layout import make_durably
from telemetry.journal.reader import JournalReader
from telemetry.journal.recovery import readable_end
from telemetry.journal.rows import Row
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json
from telemetry.run_info import RUN_FILE, SIDECAR, RunInfo, checked_info
from telemetry.sessions import MAIN_SOURCE
from telemetry.supervise.tombstones import Tombstone, read_tombstone

__all__ = ["MAIN_SOURCE", "RUN_FILE", "SIDECAR", "Run", "Runs"]

log = logging.getLogger("telemetry.ingest.runs")

_REFRESH_ROWS: Final = 200_000
_SHOWN_AFTER_NS: Final = 60_000_000_000
"""Time that a run's producer has to introduce it, from its first row on."""


class Run:
    """One run that is open for writing. Not thread-safe: the journal thread owns it."""

    def __init__(self, directory: Path, run_id: str, session: str, clock: Clock) -> None:
        self.run_id = run_id
        self.directory = directory
        self.writer = JournalWriter(directory / "journal")
        self._session = session
        self._clock = clock
        self._is_changed = False
        self._is_save_failing = False
        self._first_row_ns: int | None = None
        self.heard_ns = 0
        """Monotonic time when a producer was last heard; kept after its streams are gone."""
        try:
            self._told = RunInfo(directory, run_id, clock)
            self._catch_up()
        except BaseException:
            self.writer.close()
            raise

    @property
    def info(self) -> dict[str, Any]:
        """Values of run.json, as they are or will be written after the next sync."""
        return self._told.values

    @property
    def is_started(self) -> bool:
        """True if the run has a name: sinks show it from then on."""
        return self._told.is_shown

    @property
    def is_ended(self) -> bool:
        return bool(self.info["state"] == "ended")

    @property
    def is_empty(self) -> bool:
        """True if its journal has no row."""
        return not self.writer.next_row

    @property
    def finish_status(self) -> str | None:
        """Status of the run, if its newest main session has finished or it was declared lost."""
        ending = self._told.sessions.ending
        return None if ending is None else ending.status

    @property
    def finished_by(self) -> str | None:
        """Session whose RunFinished gave that status."""
        ending = self._told.sessions.ending
        return None if ending is None else ending.session

    @property
    def launch_id(self) -> str:
        """The `telemetry run` whose command began the newest session, or empty."""
        return str(self.info.get("launch_id", ""))

    def has_finished(self, session: str) -> bool:
        """Return True if the RunFinished of this main session has come."""
        return self._told.sessions.is_finished(session)

    def appended_seq(self, session: str, source: str) -> int:
        """Return the seq of a stream's last event in the journal, -1 before the first."""
        return self.writer.appended_seq(self.run_id, session, source)

    def durable_seq(self, session: str, source: str) -> int:
        """Return the seq of a stream's last event on disk, -1 before the first."""
        return self.writer.durable_seq(self.run_id, session, source)

    def append(
        self,
        session: str,
        source: str,
        base_seq: int,
        events: list[Event | None],
        payload: bytes,
        *,
        is_late: bool = False,
    ) -> None:
        """Append a frame to the journal, and update run.json's values from its events.

        is_late: the frame comes from the spool of a session that is over.
        """
        self.writer.append(
            self.run_id, session, source, base_seq, len(events), payload, is_late=is_late
        )
        for event in events:
            self._learn(session, source, event, is_late=is_late)
        if not is_late:
            self._told.goes_on(session, source)
        if self.is_ended:
            self.reopen()

    def say(self, event: Event) -> None:
        """Append an event of the sidecar's own to the journal."""
        seq = self.appended_seq(self._session, SIDECAR) + 1
        packed = encode_event(event, self._clock.wall_ns(), self._clock.monotonic_ns())
        self.writer.append(self.run_id, self._session, SIDECAR, seq, 1, join_events([packed]))
        self._learn(self._session, SIDECAR, event)

    def sync(self) -> None:
        """Sync the journal, then write run.json if it has changed.

        Raises:
            JournalFull, JournalFault: as the journal says.
        """
        self.writer.sync()
        if self._is_changed or self.writer.durable_row - self.info["as_of_row"] > _REFRESH_ROWS:
            self._save()

    def show_if_unannounced(self, *, is_over: bool = False) -> bool:
        """Name a run by its id if no RunStarted came for a minute, or before it is over."""
        if self.is_started or not self.writer.next_row:
            return self.is_started
        now = self._clock.monotonic_ns()
        self._first_row_ns = now if self._first_row_ns is None else self._first_row_ns
        if is_over or now - self._first_row_ns > _SHOWN_AFTER_NS:
            self._told.introduce_by_id()
            self._is_changed = True
            self._save()
        return self.is_started

    def end(self) -> None:
        """Mark the run as ended in run.json: sinks finish after its last row.

        Where run.json can't be written the run stays running, and a later call tries again.
        """
        if self.is_ended:
            return
        # Number the endings: a sink that is done with an earlier one has more to do.
        endings = self.info.get("endings", 0)
        self.info.update(state="ended", endings=endings + 1)
        if self._save():
            log.info("run=%s ended, status=%s", self.run_id, self.finish_status)
        else:
            self.info.update(state="running", endings=endings)

    def reopen(self, *, is_new_session: bool = False) -> None:
        """Mark the run as running again; run.json is written with the next sync."""
        if is_new_session:
            self._told.forget_sessions()
        self.info["state"] = "running"
        self._is_changed = True

    def end_stream(self, session: str, source: str) -> None:
        """Note that a stream has ended: the next segment's header need not name it."""
        self.writer.end_stream(self.run_id, session, source)

    def close(self) -> None:
        self.writer.close()

    def _learn(
        self, session: str, source: str, event: Event | None, *, is_late: bool = False
    ) -> None:
        # Changed also if the values are the same: as_of_row moves past the event.
        if self._told.learn(session, source, event, is_late=is_late):
            self._is_changed = True

    def _catch_up(self) -> None:
        """Learn what was journaled after run.json was last written."""
        known = int(self.info["as_of_row"])
        if known > self.writer.durable_row:
            # run.json is of another journal, which was replaced by this one.
            self._told.forget()
            known = 0
        if known < self.writer.durable_row:
            for row, event in lifecycle_events(self.writer.directory, known):
                self._learn(row.session, row.source, event, is_late=row.is_late)
            # Rows behind an end: the run goes on, and another end follows them.
            self.reopen()
        if self._is_changed:
            self._save()

    def _save(self) -> bool:
        """Write run.json; return False on failure, which loses nothing: the journal has it all."""
        self.info["as_of_row"] = self.writer.durable_row
        try:
            write_json(self.directory / RUN_FILE, self.info)
        except OSError as exc:
            if not self._is_save_failing:
                log.error("run=%s: run.json can't be written: %s", self.run_id, exc)
            self._is_changed = self._is_save_failing = True
            return False
        self._is_changed = self._is_save_failing = False
        return True


class Runs:
    """All runs under one data directory, opened as they are needed."""

    def __init__(self, data_dir: Path, session: str, clock: Clock) -> None:
        self.directory = data_dir / "runs"
        self._data_dir = data_dir
        self._session = session
        self._clock = clock
        self._open: dict[str, Run] = {}
        self._told_of: set[str] = set()
        self._unfinished: deque[Path] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def has(self, run_id: str) -> bool:
        """Return True if there is a run of this id, open or not."""
        return run_id in self._open or (self.directory / run_id).exists()

    def tombstone(self, run_id: str) -> Tombstone | None:
        """Return the tombstone of a removed run of this id, or None."""
        return read_tombstone(self._data_dir, run_id)

    def open(self, run_id: str) -> Run:
        """Return the run of this id, created if it is new.

        Raises:
            ValueError: not a run id, or its directory has a symbolic link in it.
            OSError, JournalLocked, JournalFull: its directory can't be used.
        """
        run = self._open.get(run_id)
        if run is None:
            directory = self.directory / check_run_id(run_id)
            _refuse_links(directory)
            make_durably(directory)
            run = self._open[run_id] = Run(directory, run_id, self._session, self._clock)
        return run

    def open_unfinished(self) -> None:
        """Open the runs that a former sidecar left running, or with rows behind their end."""
        self.note_unfinished()
        self.open_noted(len(self._unfinished))

    def note_unfinished(self) -> None:
        """Find the runs that `open_noted` is to open."""
        if self.directory.is_dir():
            self._unfinished = deque(sorted(self.directory.iterdir()))

    def open_noted(self, count: int) -> bool:
        """Look at some of the runs found at the start; True while there are more."""
        while self._unfinished and count > 0:
            count -= 1
            directory = self._unfinished.popleft()
            # Any exception, whatever its files hold: one bad run must not stop the others.
            try:
                if (directory / "journal").is_dir() and not _is_over(directory):
                    self.open(directory.name)
            except Exception as exc:
                log.error("run=%s can't be opened: %s", directory.name, exc)
        return bool(self._unfinished)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._open.values()))

    def active(self, but: str) -> list[Run]:
        """Return the runs that have a name and have not ended, without the one of id `but`."""
        return [run for run in self if run.is_started and not run.is_ended and run.run_id != but]

    @property
    def told_of(self) -> set[str]:
        """Ids of all runs that had a name while open here, including those closed since."""
        return self._told_of | {run.run_id for run in self if run.is_started}

    def get(self, run_id: str) -> Run | None:
        return self._open.get(run_id)

    def release(self, run: Run) -> None:
        """Close a run. `open` opens it again."""
        if run.is_started:
            self._told_of.add(run.run_id)
        run.close()
        self._open.pop(run.run_id, None)

    def discard(self, run: Run) -> None:
        """Close a run that never got a row, and take its empty directory away."""
        self.release(run)
        journal = run.directory / "journal"
        with contextlib.suppress(OSError):
            for path in (run.directory / RUN_FILE, *journal.iterdir()):
                path.unlink(missing_ok=True)
            journal.rmdir()
            run.directory.rmdir()

    def close(self) -> None:
        for run in self:
            self.release(run)


def _refuse_links(directory: Path) -> None:
    """Refuse a run whose directory has a symbolic link in it.

    Segments, run.json or quarantined bytes would be written where the link leads.

    Raises:
        ValueError: it names the link.
    """
    if directory.is_symlink():
        raise ValueError(f"the directory of run {directory.name} is a symbolic link")
    places = (directory, *(directory / name for name in ("journal", "quarantine", "cursors")))
    for place in places:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in place.iterdir():
                if path.is_symlink():
                    shown = path.relative_to(directory.parent)
                    raise ValueError(
                        f"{shown} is a symbolic link: run {directory.name} is not used"
                    )


def _is_over(directory: Path) -> bool:
    info = checked_info(directory, directory.name)
    # The journal is read, not only its durable mark: after a power cut the mark may be older
    # than the rows that were acknowledged.
    end, known = readable_end(directory / "journal"), info.get("as_of_row")
    has_news = end is not None and not (isinstance(known, int) and end.next_row <= known)
    return info.get("state") == "ended" and not has_news


def lifecycle_events(
    directory: Path, first_row: int, *, is_recorded: bool = False
) -> Iterator[tuple[Row, Event | None]]:
    """Yield the rows from first_row on whose events change run.json."""
    tags = (RunStarted.TAG, ConfigUpdated.TAG, RunFinished.TAG)
    with JournalReader(directory, first_row, is_recorded=is_recorded) as reader:
        while (batch := reader.read()).rows or not batch.is_end:
            for row in batch.rows:
                if row.envelope.tag in tags:
                    # Checked when journaled, but perhaps by an older version of this program.
                    with contextlib.suppress(DecodeError):
                        yield row, row.envelope.event()
