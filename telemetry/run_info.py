"""Run info: the contents of run.json, kept up to date from the events of the journal.

In: the events of a run, in the order of its journal.
Out: the fields of run.json.
Never: trusts a file: a value of a wrong type counts as no file at all, and the
journal is read again from its first row.

Not thread-safe: the journal thread owns it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from shared.clock import Clock
from shared.events import (
    AlertChanged,
    ConfigUpdated,
    DecodeError,
    Event,
    RunFinished,
    RunStarted,
)
from shared.ids import SIDECAR
from shared.wandb_variables import OFFLINE
from telemetry.alerts.standing import after, without_former
from telemetry.journal.reader import JournalReader
from telemetry.journal.rows import Row
from telemetry.json_files import DamagedFile, read_json
from telemetry.run_dir import (
    NUMBER_MAX,
    RUNNING,
    CursorState,
    Process,
    RunDir,
    RunFile,
    read,
    typed,
)
from telemetry.sessions import MAIN_SOURCE, MainSessions, begins_newest

CONFIG_MERGED_MAX_BYTES: Final = 256 * 1024
UNNAMED_PROJECT: Final = "uncategorized"
PROCESSES_MAX: Final = 256


class RunInfo:
    """The knowledge of a run, kept up to date event by event. Not thread-safe."""

    def __init__(self, directory: Path, run_id: str, clock: Clock) -> None:
        self._place, self._run_id, self._clock = RunDir(directory), run_id, clock
        values = read_json(self._place.run_file) or {}
        self.file = known_run(values, run_id) or RunFile()
        self._unknown: dict[str, Any] = {}
        """Fields of a newer version, which are written back as they came."""
        if self.file.run_id:
            of_ours = RunFile.__struct_fields__
            self._unknown = {name: v for name, v in values.items() if name not in of_ours}
        else:
            self.forget()
        self.sessions = _sessions_of(self.file)
        if self.file.processes is None:
            self.file.processes = _first_process(self.file)

    @property
    def is_introduced(self) -> bool:
        """True if the name came from a producer's RunStarted."""
        return self.file.is_shown and not self.file.has_no_introduction

    def to_json(self) -> dict[str, Any]:
        """Return the content of run.json."""
        return {**self._unknown, **self.file.to_json()}

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """The conditions that have begun and not ended."""
        return self.file.alerts or []

    @property
    def processes(self) -> dict[str, Process]:
        """The process of each rank, by source, until it has finished."""
        return self.file.processes or {}

    def learn(
        self, session: str, source: str, event: Event | None, *, is_late: bool, wall_ns: int
    ) -> bool:
        """Take in one event; return False if it changes nothing in run.json.

        wall_ns: the time of the event.
        """
        has_fewer = bool(self.alerts) and not is_late and self._forget_former(source, session)
        if isinstance(event, RunStarted):
            self._learn_start(session, source, event, is_late=is_late)
        elif isinstance(event, ConfigUpdated):
            if source == MAIN_SOURCE and self.sessions.newest in (None, session):
                self._merge_config(event.config)
        elif isinstance(event, RunFinished):
            self._learn_finish(session, source, event)
        elif isinstance(event, AlertChanged) and not is_late:
            self.file.alerts = after(self.alerts, source, session, event, wall_ns / 1e9)
        else:
            return has_fewer
        self._note_ending()
        return True

    def goes_on(self, session: str, source: str) -> None:
        """Note an event of a live session: a run that was declared lost is not over after all."""
        if source == MAIN_SOURCE and self.sessions.goes_on(session):
            self._note_ending()

    def introduce_by_id(self) -> None:
        """Let sinks show a run that no producer has introduced, under its id."""
        file = self.file
        file.name, file.project, file.wandb_mode = file.run_id, UNNAMED_PROJECT, OFFLINE
        file.is_introduced = False
        self._note_start()

    def forget(self) -> None:
        """Start from empty values; the caller learns again from the journal's first row."""
        # Cursors name the ending that their sink is done with. Counting on from there, the
        # next ending is a new one for them.
        endings = _endings_of_cursors(self._place) or None
        self.file = RunFile(run_id=self._run_id, state=RUNNING, endings=endings)
        self._unknown = {}
        self.sessions = MainSessions()

    def forget_sessions(self) -> None:
        """Forget all sessions and their endings: the run goes on."""
        self.sessions = MainSessions()
        self._note_ending()

    def _forget_former(self, source: str, session: str) -> bool:
        """Forget open alerts of a source's former sessions; return True if there were any."""
        left = without_former(self.alerts, source, session)
        has_fewer = len(left) < len(self.alerts)
        self.file.alerts = left
        return has_fewer

    def _learn_start(self, session: str, source: str, event: RunStarted, *, is_late: bool) -> None:
        if source == MAIN_SOURCE:
            self.sessions.began(session, is_late=is_late)
        if begins_newest(source, event, is_late=is_late) or not self.is_introduced:
            self._introduce(event)
        is_rank = source.startswith("rank") and not is_late
        if is_rank and event.pid > 0 and len(self.processes) < PROCESSES_MAX:
            process = Process(event.host, event.pid, event.process_start_ns)
            self.file.processes = self.processes | {source: process}

    def _learn_finish(self, session: str, source: str, event: RunFinished) -> None:
        self.file.processes = {s: p for s, p in self.processes.items() if s != source}
        if source == MAIN_SOURCE:
            self.sessions.finished(session, event)
        elif source == SIDECAR:
            self.sessions.given_up(event)

    def _note_ending(self) -> None:
        file, ending = self.file, self.sessions.ending
        file.status = ending and ending.status
        file.exit_code = ending and ending.exit_code
        file.finished_by = ending and ending.session
        file.sessions = self.sessions.to_json()

    def _note_start(self) -> None:
        if self.file.started_wall_ns is None:
            self.file.started_wall_ns = self._clock.wall_ns()

    def _introduce(self, event: RunStarted) -> None:
        file = self.file
        file.is_introduced = True
        file.project, file.name, file.notes = event.project, event.name, event.notes
        file.group, file.job_type, file.entity = event.group, event.job_type, event.entity
        file.tags = list(event.tags)
        file.wandb_mode, file.wandb_base_url = event.wandb_mode, event.wandb_base_url
        file.wandb_sweep_id, file.launch_id = event.wandb_sweep_id, event.launch_id
        file.config = dict(event.config)
        file.host, file.gpu_uuids = event.host, list(event.gpu_uuids)
        file.world_size = event.world_size
        file.process = {"pid": event.pid, "start_ns": event.process_start_ns}
        self._note_start()

    def _merge_config(self, config: dict[str, Any]) -> None:
        """Add keys to the configuration, the smallest first, up to CONFIG_MERGED_MAX_BYTES."""
        merged = dict(self.file.config or {})
        size = sum(_packed_size(item) for item in merged.items())
        for key, value in sorted(config.items(), key=_packed_size):
            size += _packed_size((key, value)) - _packed_size((key, merged.get(key)))
            if size > CONFIG_MERGED_MAX_BYTES:
                left_out = {*(self.file.config_left_out or []), key[:256]}
                self.file.config_left_out = sorted(left_out)[:64]
                continue
            merged[key] = value
        self.file.config = merged


def _packed_size(value: object) -> int:
    return len(msgspec.msgpack.encode(value))


def known_run(values: dict[str, Any], run_id: str) -> RunFile | None:
    """Return the content of run.json; None if it is damaged, empty, or of another run."""
    try:
        run = typed(values, RunFile, "run.json")
    except DamagedFile:
        return None
    return run if run.run_id == run_id and run.state else None


def lifecycle_events(
    directory: Path, first_row: int, *, is_recorded: bool = False
) -> Iterator[tuple[Row, Event | None]]:
    """Yield the rows of a journal from first_row on whose events change run.json."""
    tags = (RunStarted.TAG, ConfigUpdated.TAG, RunFinished.TAG, AlertChanged.TAG)
    with JournalReader(directory, first_row, is_recorded=is_recorded) as reader:
        while (batch := reader.read()).rows or not batch.is_end:
            for row in batch.rows:
                if row.envelope.tag in tags:
                    # Checked when journaled, but perhaps by an older version of this program.
                    with contextlib.suppress(DecodeError):
                        yield row, row.envelope.event()


def _sessions_of(file: RunFile) -> MainSessions:
    """Return the sessions of run.json; older versions of it name only the one that finished."""
    if file.sessions is None and file.finished_by is not None:
        ending = [file.finished_by, file.status, file.exit_code]
        return MainSessions(
            {"order": [file.finished_by], "newest": file.finished_by, "endings": [ending]}
        )
    return MainSessions(file.sessions)


def _endings_of_cursors(place: RunDir) -> int:
    """Return the highest number of an ending in the cursors of this run's sinks, 0 for none."""
    told = [read(path, CursorState) for path in place.cursors.glob("*.json")]
    endings = [cursor.ending for cursor in told if cursor is not None]
    return max((n for n in endings if 0 < n < NUMBER_MAX), default=0)


def _first_process(file: RunFile) -> dict[str, Process]:
    """Return the process of rank 0 from a run.json of a version that kept no other."""
    known = file.process or {}
    pid, start_ns = known.get("pid", 0), known.get("start_ns", 0)
    return {MAIN_SOURCE: Process(file.host or "", pid, start_ns)} if pid > 0 else {}
