"""Run directory: the places of a run's files, and the types of the small ones.

    DATA_DIR/runs/<run_id>/
      run.json                   RunFile: what is known of the run, for people, tools and sinks
      journal/                   segments and marks: journal/layout.py
      quarantine/                bytes that could not be decoded
      cursors/
        <sink>.json              CursorFile: how far the sink is
        <sink>.lock              locked by the sink's process
        <sink>.state             how the supervisor last saw the sink
        <sink>.skipped           rows that the sink leaves out: sinks/skips.py
        <sink>.slot              the row that the sink is at: sinks/slot.py
      tensorboard/  wandb/  parquet/  perfetto/   the files of those sinks
      columns/                   kept for pages and queries, may be deleted: views/column_store.py

A replay writes into another directory, with the same places for cursors and the files of
sinks. Both kinds of files may have been edited or damaged: one with a value of a wrong type
counts as no file at all, and only `load` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from shared.wandb_variables import DISABLED
from telemetry.json_files import DamagedFile, load_json

RUNNING: Final = "running"
ENDED: Final = "ended"
NUMBER_MAX: Final = 1 << 62
"""A row or a number of endings above this is a damaged one."""

_T = TypeVar("_T", bound=msgspec.Struct)


def runs_of(data_dir: Path) -> Path:
    """Return the directory that has the directories of all runs."""
    return data_dir / "runs"


@dataclass(frozen=True)
class RunDir:
    """The paths below the directory of one run, or of one replay."""

    path: Path

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine"

    @property
    def cursors(self) -> Path:
        return self.path / "cursors"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def perfetto(self) -> Path:
        return self.path / "perfetto"

    @property
    def columns(self) -> Path:
        return self.path / "columns"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def parquet(self) -> Path:
        return self.path / "parquet"

    def cursor(self, sink: str) -> Path:
        return self.cursors / f"{sink}.json"

    def lock(self, sink: str) -> Path:
        return self.cursors / f"{sink}.lock"

    def state(self, sink: str) -> Path:
        return self.cursors / f"{sink}.state"

    def skips(self, sink: str) -> Path:
        return self.cursors / f"{sink}.skipped"

    def slot(self, sink: str) -> Path:
        return self.cursors / f"{sink}.slot"


class RunState(msgspec.Struct, kw_only=True):
    """The fields of run.json that say if the run goes on, and which sinks are to have it.

    None stands for a field that is not in the file.
    """

    run_id: str = ""
    state: str = ""
    as_of_row: int = 0
    """Row after the last one that the file takes into account."""
    endings: int | None = None
    """How often the run has ended; late events reopen a run."""
    name: str | None = None
    is_introduced: bool | None = None
    """False if the run is shown under its id, because no producer has introduced it."""
    wandb_mode: str | None = None

    def __post_init__(self) -> None:
        if self.state not in ("", RUNNING, ENDED):
            raise ValueError(f"state {self.state!r}")
        if not (0 <= self.as_of_row < NUMBER_MAX and 0 <= (self.endings or 0) < NUMBER_MAX):
            raise ValueError("a number is out of range")

    @property
    def is_ended(self) -> bool:
        return self.state == ENDED

    @property
    def is_shown(self) -> bool:
        """True if the run has a name: sinks show it from then on."""
        return self.name is not None

    @property
    def has_no_introduction(self) -> bool:
        """True if the run is shown under its id, because no producer has introduced it."""
        return self.is_introduced is False

    def wants(self, sink: str) -> bool:
        """Return True if this sink is to have the run."""
        return sink != "wandb" or self.wandb_mode != DISABLED


class Process(NamedTuple):
    """A process of a run, as its RunStarted told it. start_ns: of the wall clock."""

    host: str
    pid: int
    start_ns: int


class RunFile(RunState, kw_only=True):
    """All fields of run.json."""

    status: str | None = None
    exit_code: int | None = None
    finished_by: str | None = None
    """Session whose RunFinished gave status and exit code."""
    sessions: dict[str, Any] | None = None
    """The main sessions and their endings: sessions.py."""
    project: str | None = None
    tags: list[str] | None = None
    notes: str | None = None
    group: str | None = None
    entity: str | None = None
    job_type: str | None = None
    wandb_base_url: str | None = None
    wandb_sweep_id: str | None = None
    config: dict[str, Any] | None = None
    config_left_out: list[str] | None = None
    """Keys of the configuration for which there was no room."""
    host: str | None = None
    gpu_uuids: list[str] | None = None
    world_size: int | None = None
    process: dict[str, int] | None = None
    """That of rank 0 in its newest session."""
    processes: dict[str, Process] | None = None
    """Those of all ranks that have not finished, by source."""
    started_wall_ns: int | None = None
    launch_id: str | None = None
    """The `telemetry run` whose command began the newest session."""
    alerts: list[dict[str, Any]] | None = None
    """The conditions that have begun and not ended: alerts/standing.py."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are known; exit_code may be null where there is a status."""
        fields = ((name, getattr(self, name)) for name in self.__struct_fields__)
        known = {name: value for name, value in fields if value is not None}
        return known if self.status is None else {"exit_code": None, **known}


class CursorState(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a cursor that say if the sink has all of its run."""

    run_id: str = ""
    done: bool = False
    ending: int = 0
    """`endings` of run.json when the sink finished; 0 while it is at work."""


class CursorFile(CursorState, frozen=True, kw_only=True):
    """All fields of a cursor; sinks/cursor.py describes them."""

    journal: str = ""
    row: int = 0
    state: dict[str, Any] = {}
    wall_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.row < NUMBER_MAX:
            raise ValueError(f"row {self.row}")


class StateFile(msgspec.Struct, frozen=True):
    """A sink as its supervisor last saw it, for `inspect`."""

    state: str = ""
    restarts: int = 0
    detail: str = ""


def sink_is_done(cursor: CursorState | None, run: RunState) -> bool:
    """Return True if a sink has all of a run, as of the last time that the run ended.

    cursor: None where it can't be read. Late events reopen a run, which then ends again: a
    sink that was done with an earlier end has more rows to write.
    """
    if cursor is None or not cursor.done:
        return False
    if cursor.run_id and run.run_id and cursor.run_id != run.run_id:
        return False
    return cursor.ending == (run.endings or 0)


def load(path: Path, kind: type[_T]) -> _T | None:
    """Read a file of one of the types above; None where there is no file.

    Raises:
        DamagedFile: it can't be read, or a field has a value of a wrong type.
    """
    values = load_json(path)
    return None if values is None else typed(values, kind, path.name)


def read(path: Path, kind: type[_T]) -> _T | None:
    """Read a file of one of the types above; None where there is none, or it is damaged."""
    try:
        return load(path, kind)
    except DamagedFile:
        return None


def typed(values: Mapping[str, Any], kind: type[_T], name: str) -> _T:
    """Return the values of a file with their types; fields that are not known are left out.

    Raises:
        DamagedFile: a value is of a wrong type, or out of range. name: that of the file.
    """
    # In memory None stands for "not in the file". In a file it is a damaged value.
    nulls = {key for key in kind.__struct_fields__ if values.get(key, "") is None}
    if wrong := nulls - _MAY_BE_NULL:
        raise DamagedFile(f"{name} is damaged: {min(wrong)} is null")
    try:
        return msgspec.convert(values, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise DamagedFile(f"{name} is damaged: {exc}") from exc


_MAY_BE_NULL: Final = {"status", "exit_code", "finished_by"}
