"""Runs: the directory of each run, its journal, and what is known of its life.

In: what producers say of a run, in the order of its journal.
Out: run.json, for people, tools and sinks.
Never: trusts run.json alone: what was journaled after it was written is read again.

    running --rank 0's RunFinished, other streams over--> ended
    running --nobody there for lost_after_s-------------> ended (lost)
    ended ----a new session, or late events-------------> running
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from shared.clock import Clock
from shared.events import (
    ConfigUpdated,
    Event,
    RunFinished,
    RunStarted,
    encode_event,
    join_events,
)
from shared.ids import check_run_id
from telemetry.files import read_json, write_json
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
        self._catch_up()

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

    def append(
        self, session: str, source: str, base_seq: int, events: list[Event | None], payload: bytes
    ) -> None:
        """Add a frame, and learn from it what run.json should say."""
        row = self.writer.append(self.run_id, session, source, base_seq, len(events), payload)
        for index, event in enumerate(events):
            self._learn(source, row + index, event)
        if self.is_ended:
            self.reopen()

    def say(self, event: Event) -> None:
        """Add an event of the sidecar's own."""
        seq = self.writer.appended_seq(self.run_id, self._session, SIDECAR) + 1
        packed = encode_event(event, self._clock.wall_ns(), self._clock.monotonic_ns())
        row = self.writer.append(self.run_id, self._session, SIDECAR, seq, 1, join_events([packed]))
        self._learn(SIDECAR, row, event)

    def sync(self) -> None:
        """Make all that was added durable; run.json follows.

        Raises:
            JournalFull, JournalFault: as the journal says.
        """
        self.writer.sync()
        if self._is_changed or self.writer.durable_row - self.info["as_of_row"] > _REFRESH_ROWS:
            self._save()

    def end(self) -> None:
        """Nothing more is expected. Sinks finish at the row after the last one."""
        if not self.is_ended:
            self.info["state"] = "ended"
            self._save()
            log.info("run=%s ended, status=%s", self.run_id, self.finish_status)

    def reopen(self, *, is_new_session: bool = False) -> None:
        """Somebody goes on with it."""
        if is_new_session:
            self.info.pop("status", None)
            self.info.pop("exit_code", None)
        self.info["state"] = "running"
        self._is_changed = True

    def close(self) -> None:
        self.writer.close()

    def _learn(self, source: str, row: int, event: Event | None) -> None:
        is_main = source == MAIN_SOURCE
        if isinstance(event, RunStarted) and (is_main or not self.is_started):
            self._introduce(event)
        elif isinstance(event, ConfigUpdated) and is_main:
            self.info["config"] = {**self.info.get("config", {}), **event.config}
        elif isinstance(event, RunFinished) and (is_main or source == SIDECAR):
            self.info["status"], self.info["exit_code"] = event.status, event.exit_code
        else:
            return
        self._is_changed = True

    def _introduce(self, event: RunStarted) -> None:
        self.info.update(
            project=event.project,
            name=event.name,
            tags=list(event.tags),
            notes=event.notes,
            group=event.group,
            wandb_mode=event.wandb_mode,
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
            for source, row, event in _lifecycle(self.writer.directory, known):
                self._learn(source, row, event)
            self._is_changed = True
        if self._is_changed:
            self._save()

    def _save(self) -> None:
        self.info["as_of_row"] = self.writer.durable_row
        write_json(self.directory / RUN_FILE, self.info)
        self._is_changed = False


class Runs:
    """All runs under one data directory, opened as they are needed."""

    def __init__(self, data_dir: Path, session: str, clock: Clock) -> None:
        self.directory = data_dir / "runs"
        self._session = session
        self._clock = clock
        self._open: dict[str, Run] = {}

    def open(self, run_id: str) -> Run:
        """The run of this id, created if it is new.

        Raises:
            ValueError: not a run id.
            OSError, JournalLocked: its directory can't be used.
        """
        run = self._open.get(run_id)
        if run is None:
            directory = self.directory / check_run_id(run_id)
            directory.mkdir(parents=True, exist_ok=True)
            run = self._open[run_id] = Run(directory, run_id, self._session, self._clock)
        return run

    def open_unfinished(self) -> None:
        """Open the runs that a former sidecar left running."""
        if not self.directory.is_dir():
            return
        for directory in sorted(self.directory.iterdir()):
            info = read_json(directory / RUN_FILE)
            if (directory / "journal").is_dir() and (info or {}).get("state") != "ended":
                try:
                    self.open(directory.name)
                except Exception as exc:
                    log.error("run=%s can't be opened: %s", directory.name, exc)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._open.values()))

    def get(self, run_id: str) -> Run | None:
        return self._open.get(run_id)

    def release(self, run: Run) -> None:
        """Close a run that has ended; it is opened again when it is needed."""
        run.close()
        self._open.pop(run.run_id, None)

    def close(self) -> None:
        for run in self:
            self.release(run)


def _lifecycle(directory: Path, first_row: int) -> Iterator[tuple[str, int, Event | None]]:
    """The events from first_row on that run.json is made of."""
    tags = (RunStarted.TAG, ConfigUpdated.TAG, RunFinished.TAG)
    with JournalReader(directory, first_row) as reader:
        while not (batch := reader.read()).is_end:
            for row in batch.rows:
                if row.envelope.tag in tags:
                    yield row.source, row.row, row.envelope.event()
