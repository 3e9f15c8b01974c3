"""Runs: the directory of each run, its journal, and what is known of its life.

In: what producers say of a run, in the order of its journal.
Out: run.json, for people, tools and sinks.
Never: trusts run.json alone: what was journaled after it was written is read again.

    running --RunFinished of rank 0, other streams over-> ended
    running --nobody there for lost_after_s-------------> ended (lost)
    ended ----a new session, or late events-------------> running
"""

from __future__ import annotations

import contextlib
import logging
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
from telemetry.files import read_json, write_json
from telemetry.journal.layout import read_mark
from telemetry.journal.reader import JournalReader
from telemetry.journal.writer import JournalWriter

log = logging.getLogger("telemetry.runs")

SIDECAR: Final = "sidecar"
MAIN_SOURCE: Final = "rank0"
RUN_FILE: Final = "run.json"
_REFRESH_ROWS: Final = 200_000


class Run:
    """One run that is open for writing. Not thread-safe: the ingest thread owns it."""

    def __init__(self, directory: Path, run_id: str, session: str, clock: Clock) -> None:
        self.run_id = run_id
        self.directory = directory
        self.writer = JournalWriter(directory / "journal")
        self.info: dict[str, Any] = read_json(directory / RUN_FILE) or {}
        self.info.setdefault("run_id", run_id)
        self.info.setdefault("state", "running")
        self._session = session
        self._clock = clock
        self._is_changed = False
        self._is_save_failing = False
        try:
            self._catch_up()
        except BaseException:
            self.writer.close()
            raise

    @property
    def is_started(self) -> bool:
        """A producer has introduced it: sinks know what it is called."""
        return "name" in self.info

    @property
    def is_ended(self) -> bool:
        return bool(self.info["state"] == "ended")

    @property
    def finish_status(self) -> str | None:
        """What rank 0 said at its end, if it did."""
        status: str | None = self.info.get("status")
        return status

    @property
    def finished_by(self) -> str | None:
        """The session that said so: while another of rank 0 is at work, it is not the end."""
        session: str | None = self.info.get("finished_by")
        return session

    def appended_seq(self, session: str, source: str) -> int:
        """Seq of the last event of a stream that was added here, -1 before the first."""
        return self.writer.appended_seq(self.run_id, session, source)

    def durable_seq(self, session: str, source: str) -> int:
        """As appended_seq, of those that are on disk."""
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
        """Add a frame, and learn from it what run.json should say.

        is_late: a later session of the source has the say by now.
        """
        self.writer.append(self.run_id, session, source, base_seq, len(events), payload)
        for event in events:
            self._learn(session, source, event, is_late=is_late)
        if self.is_ended:
            self.reopen()

    def say(self, event: Event) -> None:
        """Add an event of the sidecar's own."""
        seq = self.appended_seq(self._session, SIDECAR) + 1
        packed = encode_event(event, self._clock.wall_ns(), self._clock.monotonic_ns())
        self.writer.append(self.run_id, self._session, SIDECAR, seq, 1, join_events([packed]))
        self._learn(self._session, SIDECAR, event)

    def sync(self) -> None:
        """Make all that was added durable; run.json follows.

        Raises:
            JournalFull, JournalFault: as the journal says.
        """
        self.writer.sync()
        if self._is_changed or self.writer.durable_row - self.info["as_of_row"] > _REFRESH_ROWS:
            self._save()

    def end(self) -> None:
        """Nothing more is expected. Sinks finish at the row after the last one.

        Without room for run.json the run stays as it is, for another try.
        """
        if self.is_ended:
            return
        # Counted: a sink that was done with an earlier end has more to do.
        endings = self.info.get("endings", 0)
        self.info.update(state="ended", endings=endings + 1)
        if self._save():
            log.info("run=%s ended, status=%s", self.run_id, self.finish_status)
        else:
            self.info.update(state="running", endings=endings)

    def reopen(self, *, is_new_session: bool = False) -> None:
        """Somebody goes on with it."""
        if is_new_session:
            self._forget_finish()
        self.info["state"] = "running"
        self._is_changed = True

    def close(self) -> None:
        self.writer.close()

    def _learn(
        self, session: str, source: str, event: Event | None, *, is_late: bool = False
    ) -> None:
        is_main = source == MAIN_SOURCE
        if not isinstance(event, RunStarted | ConfigUpdated | RunFinished):
            return
        # Also where nothing is learned: as_of_row moves past it.
        self._is_changed = True
        if is_late:
            return
        if isinstance(event, RunStarted):
            if is_main:
                self._forget_finish()
            if is_main or not self.is_started:
                self._introduce(event)
        elif isinstance(event, ConfigUpdated):
            if is_main:
                self.info["config"] = {**self.info.get("config", {}), **event.config}
        elif is_main or source == SIDECAR:
            self.info.update(status=event.status, exit_code=event.exit_code, finished_by=session)

    def _forget_finish(self) -> None:
        for key in ("status", "exit_code", "finished_by"):
            self.info.pop(key, None)

    def _introduce(self, event: RunStarted) -> None:
        self.info.update(
            project=event.project,
            name=event.name,
            tags=list(event.tags),
            notes=event.notes,
            group=event.group,
            wandb_mode=event.wandb_mode,
            entity=event.entity,
            job_type=event.job_type,
            wandb_base_url=event.wandb_base_url,
            wandb_sweep_id=event.wandb_sweep_id,
            config=dict(event.config),
            host=event.host,
            gpu_uuids=list(event.gpu_uuids),
            world_size=event.world_size,
            process={"pid": event.pid, "start_ns": event.process_start_ns},
        )
        self.info.setdefault("started_wall_ns", self._clock.wall_ns())

    def _catch_up(self) -> None:
        """Learn what was journaled after run.json was last written."""
        known = int(self.info.setdefault("as_of_row", 0))
        if known < self.writer.durable_row:
            for session, source, event in _lifecycle(self.writer.directory, known):
                self._learn(session, source, event)
            # Behind an end there can only be late events: they bring another one.
            self.reopen()
        if self._is_changed:
            self._save()

    def _save(self) -> bool:
        """Write run.json; the journal has all that is in it, so a failure is no loss."""
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
        self._session = session
        self._clock = clock
        self._open: dict[str, Run] = {}
        self._told_of: set[str] = set()

    def open(self, run_id: str) -> Run:
        """The run of this id, created if it is new.

        Raises:
            ValueError: not a run id.
            OSError, JournalLocked, JournalFull: its directory can't be used.
        """
        run = self._open.get(run_id)
        if run is None:
            directory = self.directory / check_run_id(run_id)
            if directory.is_symlink():
                raise ValueError(f"the directory of run {run_id} is a symbolic link")
            directory.mkdir(parents=True, exist_ok=True)
            run = self._open[run_id] = Run(directory, run_id, self._session, self._clock)
        return run

    def open_unfinished(self) -> None:
        """Open the runs that a former sidecar left running, or with rows behind their end."""
        if not self.directory.is_dir():
            return
        for directory in sorted(self.directory.iterdir()):
            if (directory / "journal").is_dir() and not _is_over(directory):
                try:
                    self.open(directory.name)
                except Exception as exc:
                    log.error("run=%s can't be opened: %s", directory.name, exc)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._open.values()))

    @property
    def told_of(self) -> set[str]:
        """Every run that was introduced while it was open here, also those released since."""
        return self._told_of | {run.run_id for run in self if run.is_started}

    def get(self, run_id: str) -> Run | None:
        return self._open.get(run_id)

    def release(self, run: Run) -> None:
        """Close a run that has ended; it is opened again when it is needed."""
        if run.is_started:
            self._told_of.add(run.run_id)
        run.close()
        self._open.pop(run.run_id, None)

    def close(self) -> None:
        for run in self:
            self.release(run)


def _is_over(directory: Path) -> bool:
    info = read_json(directory / RUN_FILE) or {}
    mark = read_mark(directory / "journal")
    has_news = mark is not None and mark.next_row > info.get("as_of_row", 0)
    return info.get("state") == "ended" and not has_news


def _lifecycle(directory: Path, first_row: int) -> Iterator[tuple[str, str, Event | None]]:
    """The events from first_row on that run.json is made of."""
    tags = (RunStarted.TAG, ConfigUpdated.TAG, RunFinished.TAG)
    with JournalReader(directory, first_row) as reader:
        while (batch := reader.read()).rows or not batch.is_end:
            for row in batch.rows:
                if row.envelope.tag in tags:
                    # Checked when it was taken in; by an older program, perhaps.
                    with contextlib.suppress(DecodeError):
                        yield row.session, row.source, row.envelope.event()
