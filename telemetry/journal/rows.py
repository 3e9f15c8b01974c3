"""Rows: events at their place in a journal, and the names and values they become.

In: rows of a journal, in order.
Out: what every sink shows of them, the same in all.
Never: depends on anything but the journal, so a live sink and a replay agree.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from shared.events import (
    HARDWARE,
    TRAIN,
    Envelope,
    Event,
    Gap,
    MetricsLogged,
    RunStarted,
    Scalar,
)
from shared.ids import MAIN_SOURCE, host_of, sanitized_host
from telemetry.journal.energy import RunEnergy
from telemetry.journal.gpus import gpu_indices
from telemetry.journal.run_clock import RunClock
from telemetry.sessions import begins_newest

MEGABYTE: Final = 1024 * 1024
STEP: Final = "train/global_step"
ELAPSED: Final = "hw/elapsed_seconds"


class Row(NamedTuple):
    """One event of a journal, emitted by a source in a session as its event number seq."""

    row: int
    source: str
    session: str
    seq: int
    envelope: Envelope
    is_late: bool = False
    """True if it came from the spool of a session that was over: see `sessions`."""


class RunContext(msgspec.Struct, frozen=True):
    """Facts from the rows before this one: the host of rank 0, and the time of the run."""

    host: str | None = None
    gpu_uuids: list[str] = []
    first_wall_ns: int | None = None
    # None in a position from before there was such a clock.
    clock: RunClock | None = None
    main_session: str | None = None
    """The newest main session, by the rule that ingest, sinks and replay share."""
    # The host whose hardware came first: rank 0's, where it does not say where it is.
    hardware_host: str | None = None
    energy: RunEnergy = RunEnergy()

    def after(self, row: Row, event: Event | None) -> RunContext:
        """Return the context for this row and those behind it."""
        changed: dict[str, Any] = {}
        if self.first_wall_ns is None:
            changed["first_wall_ns"] = row.envelope.wall_ns
        if isinstance(event, RunStarted) and begins_newest(row.source, event, is_late=row.is_late):
            changed["host"] = sanitized_host(event.host) if event.host else None
            changed["gpu_uuids"] = list(event.gpu_uuids)
            changed["main_session"] = row.session
        if self.hardware_host is None and (host := host_of(row.source)):
            changed["hardware_host"] = host
        energy = self.energy.after(row.source, row.session, row.envelope.mono_ns, event)
        if energy is not self.energy:
            changed["energy"] = energy
        context = msgspec.structs.replace(self, **changed) if changed else self
        clock = (self.clock or self._first_clock(row)).after(row, context.first_host)
        if clock is context.clock:
            return context
        return msgspec.structs.replace(context, clock=clock)

    def seconds_of(self, row: Row) -> float:
        """Return the time of a hardware row since the run began, in s, by monotonic clocks."""
        return 0.0 if self.clock is None else self.clock.seconds_of(row)

    def _first_clock(self, row: Row) -> RunClock:
        """Return a clock at 0, or at the wall time passed for a position saved without a clock."""
        if self.first_wall_ns is None:
            return RunClock()
        return RunClock(elapsed_ns=max(0, row.envelope.wall_ns - self.first_wall_ns))

    @property
    def first_host(self) -> str | None:
        """Host that `cpu_percent` and the like describe: rank 0's, or else the first sampler's."""
        return self.host or self.hardware_host

    def to_json(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


class Point(NamedTuple):
    """Named values of one moment, as a sink shows them; step is the optimizer step or None."""

    kind: str
    step: int | None
    wall_ns: int
    values: dict[str, Scalar]


def point_of(row: Row, event: Event | None, context: RunContext) -> Point | None:
    """Return the names and values of an event, or None where it has none.

    Training metrics keep the names they were given, and get their step as
    `train/global_step`. Hardware is `hw/<host>/<name>`, except that the names
    which pipelines have always charted (`cpu_percent`, `memory_percent`,
    `gpu_utilization` in %, `gpu_memory_used` in MB, `gpu_memory_percent`,
    `gpu_temperature` in °C) describe rank 0's host and its first GPU.
    """
    wall_ns = row.envelope.wall_ns
    if isinstance(event, Gap):
        return Point("gap", None, wall_ns, {"telemetry/gap_events": event.count})
    if not isinstance(event, MetricsLogged):
        return None
    if event.kind == HARDWARE:
        return Point(HARDWARE, None, wall_ns, _hardware_values(row, event, context))
    if row.source == MAIN_SOURCE:
        values = dict(event.values)
        if event.kind == TRAIN and event.step is not None:
            values = {**context.energy.newest, **values}
    else:
        values = {_own_name(row.source, name): value for name, value in event.values.items()}
    if event.step is not None:
        values.setdefault(STEP, event.step)
    return Point(event.kind, event.step, wall_ns, values)


def _own_name(source: str, name: str) -> str:
    """Put the source into names under telemetry/; other names stay, as if rank 0 had sent them."""
    if name.startswith("telemetry/"):
        return f"telemetry/{source}/{name.removeprefix('telemetry/')}"
    return name


def _hardware_values(row: Row, event: MetricsLogged, context: RunContext) -> dict[str, Scalar]:
    # Another source that sends values of kind hardware counts as a host of that name.
    host = host_of(row.source) or row.source
    is_first_host = context.first_host in (None, host)
    values: dict[str, Scalar] = {}
    for name, value in event.values.items():
        if is_first_host and name in ("cpu_percent", "memory_percent"):
            values[name] = value
        else:
            values[f"hw/{host}/{name}"] = value
    if is_first_host:
        values.update(_first_gpu_values(event.values, context.gpu_uuids))
    values[ELAPSED] = context.seconds_of(row)
    return values


def _first_gpu_values(values: dict[str, Any], gpu_uuids: list[str]) -> dict[str, Scalar]:
    index = _first_gpu_index(values, gpu_uuids)
    if index is None:
        return {}
    gpu: dict[str, Scalar] = {}
    for legacy, name, divisor in (
        ("gpu_utilization", "utilization_percent", 1),
        ("gpu_memory_used", "memory_used_bytes", MEGABYTE),
        ("gpu_memory_percent", "memory_percent", 1),
        ("gpu_temperature", "temperature_celsius", 1),
    ):
        value = values.get(f"gpu/{index}/{name}")
        if value is not None:
            gpu[legacy] = value if divisor == 1 else value / divisor
    return gpu


def _first_gpu_index(values: dict[str, Any], gpu_uuids: list[str]) -> str | None:
    """Return the sampler's index of the run's first GPU; 0 where the run names no GPU."""
    if gpu_uuids:
        return next(iter(gpu_indices(values, gpu_uuids[:1])), None)
    return "0" if "gpu/0/uuid" in values else None
