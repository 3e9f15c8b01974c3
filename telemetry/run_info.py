"""Run info: the contents of run.json, kept up to date from the events of the journal.

In: the events of a run, in the order of its journal.
Out: a plain dict, for run.json.
Never: trusts a file: a value of the wrong type counts as no file at all, and the
journal is read again from its first row.

Not thread-safe: the journal thread owns it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from shared.clock import Clock
from shared.events import AlertChanged, ConfigUpdated, Event, RunFinished, RunStarted
from shared.ids import SIDECAR
from telemetry.alerts.standing import after, without_former
from telemetry.json_files import read_json
from telemetry.sessions import MAIN_SOURCE, MainSessions, begins_newest

RUN_FILE: Final = "run.json"
CONFIG_MERGED_MAX_BYTES: Final = 256 * 1024
UNNAMED_PROJECT: Final = "uncategorized"


class _Known(msgspec.Struct, frozen=True):
    """Types of the fields of run.json; a field may be absent."""

    run_id: str
    state: str
    as_of_row: int = 0
    endings: int = 0
    status: str | None = None
    exit_code: int | None = None
    finished_by: str | None = None
    sessions: dict[str, Any] = {}
    is_introduced: bool = True
    project: str = ""
    name: str = ""
    tags: list[str] = []
    notes: str = ""
    group: str = ""
    wandb_mode: str = ""
    entity: str = ""
    job_type: str = ""
    wandb_base_url: str = ""
    wandb_sweep_id: str = ""
    config: dict[str, Any] = {}
    host: str = ""
    gpu_uuids: list[str] = []
    world_size: int = 1
    process: dict[str, int] = {}
    started_wall_ns: int = 0
    launch_id: str = ""
    alerts: list[dict[str, Any]] = []


class RunInfo:
    """Values of run.json, kept up to date event by event. Not thread-safe."""

    def __init__(self, directory: Path, run_id: str, clock: Clock) -> None:
        self._directory, self._run_id, self._clock = directory, run_id, clock
        self.values = checked_info(directory, run_id)
        if not self.values:
            self.forget()
        self.values.setdefault("as_of_row", 0)
        self.sessions = _sessions_of(self.values)

    @property
    def is_shown(self) -> bool:
        """True if the run has a name: sinks show it from then on."""
        return "name" in self.values

    @property
    def is_introduced(self) -> bool:
        """True if the name came from a producer's RunStarted."""
        return self.is_shown and self.values.get("is_introduced") is not False

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """The conditions that have begun and not ended."""
        found: list[dict[str, Any]] = self.values.get("alerts", [])
        return found

    def learn(self, session: str, source: str, event: Event | None, *, is_late: bool) -> bool:
        """Take in one event; return False if it changes nothing in run.json."""
        has_fewer = bool(self.alerts) and not is_late and self._forget_former(source, session)
        if isinstance(event, RunStarted):
            self._learn_start(session, source, event, is_late=is_late)
        elif isinstance(event, ConfigUpdated):
            if source == MAIN_SOURCE and self.sessions.newest in (None, session):
                self._merge_config(event.config)
        elif isinstance(event, RunFinished):
            self._learn_finish(session, source, event)
        elif isinstance(event, AlertChanged) and not is_late:
            self.values["alerts"] = after(self.alerts, source, session, event)
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
        run_id = self.values["run_id"]
        self.values.update(name=run_id, project=UNNAMED_PROJECT, wandb_mode="offline")
        self.values["is_introduced"] = False
        self.values.setdefault("started_wall_ns", self._clock.wall_ns())

    def forget(self) -> None:
        """Start from empty values; the caller learns again from the journal's first row."""
        self.values = {"run_id": self._run_id, "state": "running", "as_of_row": 0}
        if endings := _endings_of_cursors(self._directory):
            # Cursors name the ending that their sink is done with. Counting on from there, the
            # next ending is a new one for them.
            self.values["endings"] = endings
        self.sessions = MainSessions()

    def forget_sessions(self) -> None:
        """Forget all sessions and their endings: the run goes on."""
        self.sessions = MainSessions()
        self._note_ending()

    def _forget_former(self, source: str, session: str) -> bool:
        """Forget open alerts of a source's former sessions; return True if there were any."""
        left = without_former(self.alerts, source, session)
        has_fewer = len(left) < len(self.alerts)
        self.values["alerts"] = left
        return has_fewer

    def _learn_start(self, session: str, source: str, event: RunStarted, *, is_late: bool) -> None:
        if source == MAIN_SOURCE:
            self.sessions.began(session, is_late=is_late)
        if begins_newest(source, event, is_late=is_late) or not self.is_introduced:
            self._introduce(event)

    def _learn_finish(self, session: str, source: str, event: RunFinished) -> None:
        if source == MAIN_SOURCE:
            self.sessions.finished(session, event)
        elif source == SIDECAR:
            self.sessions.given_up(event)

    def _note_ending(self) -> None:
        for key in ("status", "exit_code", "finished_by"):
            self.values.pop(key, None)
        if (ending := self.sessions.ending) is not None:
            self.values.update(
                status=ending.status, exit_code=ending.exit_code, finished_by=ending.session
            )
        self.values["sessions"] = self.sessions.to_json()

    def _introduce(self, event: RunStarted) -> None:
        self.values.update(
            is_introduced=True,
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
            launch_id=event.launch_id,
        )
        self.values.setdefault("started_wall_ns", self._clock.wall_ns())

    def _merge_config(self, config: dict[str, Any]) -> None:
        """Add keys to the configuration, the smallest first, up to CONFIG_MERGED_MAX_BYTES."""
        merged = dict(self.values.get("config", {}))
        size = sum(_packed_size(item) for item in merged.items())
        for key, value in sorted(config.items(), key=_packed_size):
            size += _packed_size((key, value)) - _packed_size((key, merged.get(key)))
            if size > CONFIG_MERGED_MAX_BYTES:
                left_out = set(self.values.get("config_left_out", [])) | {key[:256]}
                self.values["config_left_out"] = sorted(left_out)[:64]
                continue
            merged[key] = value
        self.values["config"] = merged


def _packed_size(value: object) -> int:
    return len(msgspec.msgpack.encode(value))


def checked_info(directory: Path, run_id: str) -> dict[str, Any]:
    """Read run.json; return {} where it is absent, damaged, or of another run."""
    values = read_json(directory / RUN_FILE)
    if values is None or values.get("run_id") != run_id:
        return {}
    try:
        known = msgspec.convert(values, _Known)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    is_sane = known.state in ("running", "ended") and 0 <= known.as_of_row < 2**62
    return dict(values) if is_sane and 0 <= known.endings < 2**62 else {}


def _sessions_of(values: dict[str, Any]) -> MainSessions:
    """Return the sessions of run.json; older versions of it name only the one that finished."""
    if "sessions" not in values and isinstance(session := values.get("finished_by"), str):
        ending = [session, values.get("status"), values.get("exit_code")]
        return MainSessions({"order": [session], "newest": session, "endings": [ending]})
    return MainSessions(values.get("sessions"))


def _endings_of_cursors(directory: Path) -> int:
    """Return the highest number of an ending in the cursors of this run's sinks, 0 for none."""
    told = [read_json(path) or {} for path in (directory / "cursors").glob("*.json")]
    endings = [cursor.get("ending") for cursor in told]
    return max((n for n in endings if isinstance(n, int) and 0 < n < 2**62), default=0)
