"""The metrics that telemetry records about itself, and those that it derives for every sink."""

from __future__ import annotations

from typing import Final

from shared.metric import Metric, MetricList

_OWN: Final = "rank 0's emitter; others are `telemetry/<source>/…`"

OWN: Final = MetricList(
    (
        Metric("telemetry/gap_events", "events", "missing here, from any source that lost them"),
        Metric("telemetry/emitted_total", "events", _OWN),
        Metric("telemetry/acknowledged_total", "events", _OWN),
        Metric("telemetry/queued_events", "events", _OWN),
        Metric("telemetry/spooled_events", "events", _OWN),
        Metric("telemetry/dropped_total", "events", _OWN),
        Metric("telemetry/refused_total", "events", _OWN),
        Metric("telemetry/dropped_total/<reason>", "events", _OWN),
        Metric("telemetry/refused_total/<reason>", "events", _OWN),
    )
)

DERIVED: Final = MetricList(
    (
        Metric("gpu_utilization", "%", "`utilization_percent` of rank 0's first GPU"),
        Metric("gpu_memory_used", "MB", "`memory_used_bytes` of rank 0's first GPU"),
        Metric("gpu_memory_percent", "%", "`memory_percent` of rank 0's first GPU"),
        Metric("gpu_temperature", "°C", "`temperature_celsius` of rank 0's first GPU"),
        Metric("train/energy_joules", "J", "all GPUs that ranks named, since the run's start"),
        Metric("train/joules_per_step", "J/step", "the same, over 10 s or more"),
        Metric("train/joules_per_1000_tokens", "J", "the same, by `train/tokens_per_second`"),
        Metric("hw/elapsed_seconds", "s", "since the run's first event, by monotonic clocks"),
    )
)
