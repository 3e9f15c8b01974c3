"""Statistics: the counts of what became of an emitter's events, for scripts and as metrics.

In: counters of the queue, the backlog and the stream.
Out: one consistent set of totals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.events import Scalar


@dataclass(frozen=True)
class EmitterStats:
    """Counts of events since the emitter started, Gap events of its own among them.

    emitted = acknowledged + queued + dropped + refused, when nothing moves.
    """

    emitted: int = 0
    acknowledged: int = 0
    queued: int = 0
    """Emitted and neither acknowledged nor given up yet, in memory or in the spool."""
    spooled: int = 0
    dropped: int = 0
    refused: int = 0
    dropped_by_reason: Mapping[str, int] = field(default_factory=dict, compare=False)
    refused_by_reason: Mapping[str, int] = field(default_factory=dict, compare=False)

    def as_metrics(self) -> dict[str, Scalar]:
        """Return the counts as values of a row, by the names that every sink shows."""
        values: dict[str, Scalar] = {
            "telemetry/emitted_total": self.emitted,
            "telemetry/acknowledged_total": self.acknowledged,
            "telemetry/queued_events": self.queued,
            "telemetry/spooled_events": self.spooled,
            "telemetry/dropped_total": self.dropped,
            "telemetry/refused_total": self.refused,
        }
        for name, counts in (
            ("dropped", self.dropped_by_reason),
            ("refused", self.refused_by_reason),
        ):
            for reason, count in counts.items():
                values[f"telemetry/{name}_total/{reason.replace(' ', '_')}"] = count
        return values


def added_up(*counts: Mapping[str, int]) -> dict[str, int]:
    """Return the sums by reason of counters of other threads, without those that are 0."""
    total: Counter[str] = Counter()
    for counter in counts:
        # Copied in one step of the interpreter: its thread may add a reason meanwhile.
        total.update(dict(counter))
    return dict(+total)
