"""Snapshot: runs and machines as they stand at one moment, in plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.events import Scalar
from telemetry.monitor.processes import ProcessLine
from telemetry.views.follow import Alert, Message
from telemetry.views.series import Sample


@dataclass(frozen=True)
class SinkLag:
    """The lag of one sink of a run: the rows that it does not have yet."""

    name: str
    rows: int
    is_done: bool


@dataclass(frozen=True)
class RunLine:
    """One run as it stands. Values that are not known are None."""

    run_id: str
    name: str
    project: str
    state: str
    """running, ended with its status, or silent."""
    is_host: bool
    rows: int
    read_ratio: float = 1.0
    step: int | None = None
    total_steps: int | None = None
    loss_name: str = ""
    loss: float | None = None
    val_loss: float | None = None
    stage: str = ""
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    steps_per_second: float | None = None
    started_s: float = 0.0
    gap_events: int = 0
    damaged_parts: int = 0
    """Parts of the journal that can't be read."""
    sinks: tuple[SinkLag, ...] = ()
    curve: Sequence[Sample] = ()
    is_thinned: bool = False
    val_curve: Sequence[Sample] = ()
    messages: tuple[Message, ...] = ()
    alerts: tuple[Alert, ...] = ()

    @property
    def is_running(self) -> bool:
        return self.state in ("running", "silent")


@dataclass(frozen=True)
class HostLine:
    """One machine as its sampler last saw it, with the points of the last hour."""

    name: str
    wall_s: float
    values: dict[str, Scalar]
    points: dict[str, list[Sample]]
    is_quiet: bool = False


@dataclass(frozen=True)
class Snapshot:
    """All that a screen shows, at one moment."""

    wall_s: float
    place: str
    sidecar: str
    """pid of the sidecar at work, empty where there is none."""
    hosts: tuple[HostLine, ...] = ()
    runs: tuple[RunLine, ...] = ()
    is_complete: bool = True
    """False while journals are still being read up to their present end."""
    problems: tuple[str, ...] = ()
    trainers: Mapping[int, str] = field(default_factory=dict)
    """Training processes on this machine, by pid; empty where no sidecar is at work here."""
    processes: tuple[ProcessLine, ...] = ()
    """All processes of this machine, where they were asked for."""
