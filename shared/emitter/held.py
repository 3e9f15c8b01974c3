"""Held events: copies that emit() keeps in the queue until the sender thread takes them.

In: an event as a script made it.
Out: the same event with copied containers, and about how much memory it takes.
Never: waits, or calls a method of a value of an unknown type.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from shared.events import Event, HistogramLogged, MetricsLogged
from shared.values.frozen import CONFIG_BUDGET, ROW_BUDGET, Freezer
from shared.values.histograms import held_numbers
from shared.values.rows import VALUE_COST_BYTES, held_row

EVENT_COST_BYTES: Final = 400
"""Memory of an event beside its values. Measured: a row of 12 floats takes 1,080 bytes in all."""

_CONFIGS: Final = frozenset({"config", "summary"})


def held_event(event: Any) -> tuple[Event, int]:
    """Return a copy of an event that the caller can't change, and its cost in bytes.

    Raises:
        TypeError: the value is not an event.
    """
    kind = type(event)
    if not issubclass(kind, Event):
        raise TypeError("not an event")
    if issubclass(kind, MetricsLogged):
        values, extra = held_row(event.values)
        step = Freezer(ROW_BUDGET).freeze(event.step)
        row = msgspec.structs.replace(event, values=values, step=step)
        return row, EVENT_COST_BYTES + VALUE_COST_BYTES * len(values) + extra
    changes, cost = _held_fields(event)
    return msgspec.structs.replace(event, **changes), cost


def _held_fields(event: Event) -> tuple[dict[str, Any], int]:
    changes: dict[str, Any] = {}
    cost = 4 * EVENT_COST_BYTES
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if issubclass(type(event), HistogramLogged) and name in ("edges", "counts"):
            changes[name] = held = held_numbers(value)
            cost += 40 * len(held)
            continue
        budget = CONFIG_BUDGET if name in _CONFIGS else ROW_BUDGET
        freezer = Freezer(budget)
        changes[name] = freezer.freeze(value)
        cost += VALUE_COST_BYTES * (budget - max(0, freezer.left))
        if type(changes[name]) is str:
            cost += 4 * len(changes[name])
    return changes, cost
