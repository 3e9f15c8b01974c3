"""Run: one run that is open for writing: its journal, and run.json beside it.

In: the events of a run, in the order of its journal.
Out: run.json, for people, tools and sinks.
Never: trusts run.json alone: rows that were journaled after it was written are read again.

    running --the newest main session has finished, others are over--> ended
    running --no producer was heard for lost_after_s-----------------> ended (lost)
    ended ----a new session, or late events--------------------------> running
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from shared.clock import Clock
from shared.events import Event, MetricsLogged, encode_event, join_events
from shared.ids import SIDECAR, StreamId
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json
from telemetry.run_dir import ENDED, RUNNING, Process, RunDir, RunFile
from telemetry.run_info import RunInfo, lifecycle_events
from telemetry.watch.facts import RunFacts
from telemetry.watch.feed import Feed

log = logging.getLogger("telemetry.ingest.runs")

_REFRESH_ROWS: Final = 200_000
_SHOWN_AFTER_NS: Final = 60_000_000_000
"""Time that a run's producer has to introduce it, from its first row on."""


class Run:
    """One run that is open for writing. Not thread-safe: the journal thread owns it."""

    def __init__(
        self,
        place: RunDir,
        run_id: str,
        session: str,
        clock: Clock,
        unsynced: set[str],
        open_journal: Callable[[Path], JournalWriter] = JournalWriter,
        feed: Feed | None = None,
    ) -> None:
        """Open the journal of a run, and learn what run.json does not say yet.

        unsynced: where the run enters its id while its journal has rows that are not on disk.
        """
        self.run_id = run_id
        self.place = place
        self.writer = open_journal(place.journal)
        self._unsynced = unsynced
        self._session = session
        self._clock = clock
        self._feed = feed
        self._is_changed = False
        self._is_save_failing = False
        self._first_row_ns: int | None = None
        self.heard_ns = 0
        """Monotonic time when a producer was last heard; kept after its streams are gone."""
        try:
            self._told = RunInfo(place.path, run_id, clock)
            self._catch_up()
        except BaseException:
            self.writer.close()
            raise

    @property
    def file(self) -> RunFile:
        """The fields of run.json, as they are or will be written after the next sync."""
        return self._told.file

    @property
    def is_started(self) -> bool:
        """True if the run has a name: sinks show it from then on."""
        return self.file.is_shown

    @property
    def is_ended(self) -> bool:
        return self.file.is_ended

    @property
    def is_empty(self) -> bool:
        """True if its journal has no row."""
        return not self.writer.next_row

    @property
    def is_unsynced(self) -> bool:
        """True if its journal has rows that are not on disk."""
        return self.run_id in self._unsynced

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
        return self.file.launch_id or ""

    def has_finished(self, session: str) -> bool:
        """Return True if the RunFinished of this main session has come."""
        return self._told.sessions.is_finished(session)

    def appended_seq(self, session: str, source: str) -> int:
        """Return the seq of a stream's last event in the journal, -1 before the first."""
        return self.writer.appended_seq(self._stream_id(session, source))

    def durable_seq(self, session: str, source: str) -> int:
        """Return the seq of a stream's last event on disk, -1 before the first."""
        return self.writer.durable_seq(self._stream_id(session, source))

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """The conditions that have begun in this run and not ended."""
        return self._told.alerts

    def facts(self, now_ns: int, *, is_host: bool) -> RunFacts:
        """Return what other threads may know of the run."""
        return RunFacts(
            run_id=self.run_id,
            name=self._told.file.name or "",
            project=self._told.file.project or "",
            is_host=is_host,
            is_started=self.is_started,
            is_ended=self.is_ended,
            finish_status=self.finish_status,
            main_session=self._told.sessions.newest,
            silent_s=(now_ns - self.heard_ns) / 1e9 if self.heard_ns else 0.0,
            durable_row=self.writer.durable_row,
            alerts=tuple(self._told.alerts),
        )

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
        stream = self._stream_id(session, source)
        self.writer.append(stream, base_seq, len(events), payload, is_late=is_late)
        self._unsynced.add(self.run_id)
        # Nearly all events are metrics: they change run.json only where alerts of a former
        # session are open.
        has_alerts = bool(self._told.alerts)
        for event in events:
            if has_alerts or type(event) is not MetricsLogged:
                self._learn(session, source, event, is_late=is_late)
        if not is_late:
            self._told.goes_on(session, source)
            self._hand_on(stream, payload, events)
        if self.is_ended:
            self.reopen()

    def say(self, event: Event) -> None:
        """Append an event of the sidecar's own to the journal."""
        own = self._stream_id(self._session, SIDECAR)
        seq = self.writer.appended_seq(own) + 1
        packed = encode_event(event, self._clock.wall_ns(), self._clock.monotonic_ns())
        payload = join_events([packed])
        self.writer.append(own, seq, 1, payload)
        self._unsynced.add(self.run_id)
        self._learn(self._session, SIDECAR, event)
        self._hand_on(own, payload, [event])

    @property
    def processes(self) -> dict[str, Process]:
        """The process of each rank, by source, until it has finished."""
        return self._told.processes

    def sync(self) -> None:
        """Sync the journal, then write run.json if it has changed.

        Raises:
            JournalFull, JournalFault: as the journal says.
        """
        self.writer.sync()
        self._unsynced.discard(self.run_id)
        if self._is_changed or self.writer.durable_row - self.file.as_of_row > _REFRESH_ROWS:
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
        endings = self.file.endings
        self.file.state, self.file.endings = ENDED, (endings or 0) + 1
        if self._save():
            log.info("run=%s ended, status=%s", self.run_id, self.finish_status)
        else:
            self.file.state, self.file.endings = RUNNING, endings

    def reopen(self, *, is_new_session: bool = False) -> None:
        """Mark the run as running again; run.json is written with the next sync."""
        if is_new_session:
            self._told.forget_sessions()
        self.file.state = RUNNING
        self._is_changed = True

    def end_stream(self, session: str, source: str) -> None:
        """Note that a stream has ended: the next segment's header need not name it."""
        self.writer.end_stream(self._stream_id(session, source))

    def close(self) -> None:
        self.writer.close()

    def _hand_on(self, stream: StreamId, payload: bytes, events: list[Event | None]) -> None:
        if self._feed is not None:
            self._feed.put(stream, payload, events)

    def _stream_id(self, session: str, source: str) -> StreamId:
        """Return the id under which a stream stands in this run's journal.

        A sampler's stream stands in several, under the id of each run.
        """
        return StreamId(self.run_id, session, source)

    def _learn(
        self,
        session: str,
        source: str,
        event: Event | None,
        *,
        is_late: bool = False,
        wall_ns: int | None = None,
    ) -> None:
        wall_ns = self._clock.wall_ns() if wall_ns is None else wall_ns
        # Changed also if the values are the same: as_of_row moves past the event.
        if self._told.learn(session, source, event, is_late=is_late, wall_ns=wall_ns):
            self._is_changed = True

    def _catch_up(self) -> None:
        """Learn what was journaled after run.json was last written."""
        known = self.file.as_of_row
        if known > self.writer.durable_row:
            # run.json is of another journal, which was replaced by this one.
            self._told.forget()
            known = 0
        if known < self.writer.durable_row:
            for row, event in lifecycle_events(self.writer.directory, known):
                self._learn(
                    row.session,
                    row.source,
                    event,
                    is_late=row.is_late,
                    wall_ns=row.envelope.wall_ns,
                )
            # Rows behind an end: the run goes on, and another end follows them.
            self.reopen()
        if self._is_changed:
            self._save()

    def _save(self) -> bool:
        """Write run.json; return False on failure, which loses nothing: the journal has it all."""
        self.file.as_of_row = self.writer.durable_row
        try:
            write_json(self.place.run_file, self._told.to_json())
        except OSError as exc:
            if not self._is_save_failing:
                log.error("run=%s: run.json can't be written: %s", self.run_id, exc)
            self._is_changed = self._is_save_failing = True
            return False
        self._is_changed = self._is_save_failing = False
        return True
