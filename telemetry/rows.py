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
    Envelope,
    Event,
    Gap,
    MetricsLogged,
    RunStarted,
    Scalar,
)
from shared.ids import sanitized_host
from telemetry.sessions import begins_newest

MEGABYTE: Final = 1024 * 1024
STEP: Final = "train/global_step"
ELAPSED: Final = "hw/elapsed_seconds"


class Row(NamedTuple):
    """One event of a journal. (source, session, seq) say who emitted it, as its what-th."""

    row: int
    source: str
    session: str
    seq: int
    envelope: Envelope
    is_late: bool = False
    """Sent by somebody else when its session was over: see `sessions`."""


class RunContext(msgspec.Struct, frozen=True):
    """What the rows before say about the run: where rank 0 is, and when it all began."""

    host: str | None = None
    gpu_uuids: list[str] = []
    first_wall_ns: int | None = None
    main_session: str | None = None
    """The newest main session, by the rule that ingest, sinks and replay share."""

    def after(self, row: Row, event: Event | None) -> RunContext:
        """The context for the rows behind this one, and for this one itself."""
        context = self
        if context.first_wall_ns is None:
            context = msgspec.structs.replace(context, first_wall_ns=row.envelope.wall_ns)
        if isinstance(event, RunStarted) and begins_newest(row.source, event, is_late=row.is_late):
            context = msgspec.structs.replace(
                context,
                host=sanitized_host(event.host),
                gpu_uuids=list(event.gpu_uuids),
                main_session=row.session,
            )
        return context

    def to_json(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self)


class Point(NamedTuple):
    """Named values of one moment, as a sink shows them. step is the optimizer step or None."""

    kind: str
    step: int | None
    wall_ns: int
    values: dict[str, Scalar]


def point_of(row: Row, event: Event | None, context: RunContext) -> Point | None:
    """The names and values of an event, or None where it has none.

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
    values = {_own_name(row.source, name): value for name, value in event.values.items()}
    if event.step is not None:
        values.setdefault(STEP, event.step)
    return Point(event.kind, event.step, wall_ns, values)


def _own_name(source: str, name: str) -> str:
    """What emitters tell of themselves, apart by source; rank 0 is who is meant otherwise."""
    if source != "rank0" and name.startswith("telemetry/"):
        return f"telemetry/{source}/{name.removeprefix('telemetry/')}"
    return name


def host_of(source: str) -> str:
    """The host in `hardware:<host>`."""
    return source.partition(":")[2]


def _hardware_values(row: Row, event: MetricsLogged, context: RunContext) -> dict[str, Scalar]:
    host = host_of(row.source)
    # Without a trainer (context.host is None) the run is the host's own.
    is_first_host = context.host is None or context.host == host
    values: dict[str, Scalar] = {}
    for name, value in event.values.items():
        if is_first_host and name in ("cpu_percent", "memory_percent"):
            values[name] = value
        else:
            values[f"hw/{host}/{name}"] = value
    if is_first_host:
        values.update(_first_gpu_values(event.values, context.gpu_uuids))
    if context.first_wall_ns is not None:
        values[ELAPSED] = (row.envelope.wall_ns - context.first_wall_ns) / 1e9
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
    """The sampler's index of the run's first GPU; of GPU 0 where the run names none."""
    by_uuid = {
        uuid: name.split("/")[1]
        for name, uuid in values.items()
        if name.startswith("gpu/") and name.endswith("/uuid")
    }
    if gpu_uuids:
        return by_uuid.get(gpu_uuids[0])
    return "0" if "gpu/0/uuid" in values else None
