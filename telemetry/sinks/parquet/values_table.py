"""Values table: rows of a journal as columns in memory, one line for each value.

In: rows of one run, in order.
Out: columns of equal length, as NumPy arrays by name.
Never: depends on anything but the journal, so a live sink, a replay and a query agree.

Not thread-safe.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import numpy as np

from shared.events import (
    EVENT_TYPES,
    AlertChanged,
    DecodeError,
    Event,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    Scalar,
)
from telemetry.journal.rows import STEP, Row, RunContext, point_of

POLICY_VERSION: Final = "1"
"""Version of the rules from rows to values; files of another version are written anew."""
NO_STEP: Final = -(2**63)
DEPTH_MAX: Final = 64


class ValuesTable:
    """Columns that grow row by row, until they are taken."""

    def __init__(self, context: RunContext) -> None:
        """Begin behind the rows that `context` has seen."""
        self.context = context
        self._clear()

    def __len__(self) -> int:
        return len(self._names)

    def add(self, row: Row) -> None:
        """Add the values of one event; one that can't be decoded adds nothing."""
        try:
            event = row.envelope.event()
        except DecodeError:
            return
        self.context = self.context.after(row, event)
        if isinstance(event, MetricsLogged):
            self._add_metrics(row, event)
        elif event is not None:
            self._add_event(row, event)

    def take(self) -> dict[str, Any]:
        """Return the columns, and begin with empty ones.

        Nulls are told by arrays of bool: `has_step`, `has_value`, `has_integer`; NaN by `is_nan`.
        """
        counts, size = np.array(self._counts, dtype=np.int64), len(self._names)

        def spread(values: list[Any], dtype: Any) -> Any:
            return np.repeat(np.array(values, dtype=dtype), counts)

        steps = spread(self._steps, np.int64)
        has_value = np.ones(size, dtype=bool)
        has_value[list(self._texts)] = False
        texts = np.full(size, None, dtype=object)
        texts[list(self._texts)] = list(self._texts.values())
        integers, has_integer = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=bool)
        integers[list(self._integers)] = list(self._integers.values())
        has_integer[list(self._integers)] = True
        values = np.array(self._values, dtype=np.float64)
        columns = {
            "source": spread(self._sources, object),
            "session": spread(self._sessions, object),
            "row": spread(self._rows, np.int64),
            "late": spread(self._lates, bool),
            "kind": spread(self._kinds, object),
            "step": steps,
            "has_step": steps != NO_STEP,
            "wall_us": spread(self._walls_us, np.int64),
            "name": np.array(self._names, dtype=object),
            "value": values,
            # DuckDB takes a NaN in an array for a hole.
            "is_nan": np.isnan(values),
            "has_value": has_value,
            "integer": integers,
            "has_integer": has_integer,
            "text": texts,
        }
        self._clear()
        return columns

    def _clear(self) -> None:
        # Once an event.
        self._counts: list[int] = []
        self._sources: list[str] = []
        self._sessions: list[str] = []
        self._rows: list[int] = []
        self._lates: list[bool] = []
        self._kinds: list[str] = []
        self._steps: list[int] = []
        self._walls_us: list[int] = []
        # Once a value.
        self._names: list[str | None] = []
        self._values: list[float] = []
        self._integers: dict[int, int] = {}
        self._texts: dict[int, str] = {}

    def _add_metrics(self, row: Row, event: MetricsLogged) -> None:
        point = point_of(row, event, self.context)
        if point is None:
            return
        values = point.values
        if point.step is not None and values.get(STEP) == point.step:
            del values[STEP]  # it is in a column of its own
        if not values:
            return
        # What is called like another event must not pass for one.
        kind = f"metrics:{event.kind}" if event.kind in EVENT_TYPES else event.kind
        self._begin(row, kind, event.step, len(values))
        if set(map(type, values.values())) == {float}:
            self._names.extend(values)
            self._values.extend(values.values())  # type: ignore[arg-type]
            return
        for name, value in values.items():
            self._add_value(name, value)

    def _add_value(self, name: str, value: Scalar) -> None:
        at = len(self._names)
        self._names.append(name)
        if isinstance(value, str):
            self._texts[at] = value
            self._values.append(0.0)
            return
        if type(value) is int:
            self._integers[at] = value
        self._values.append(float(value))

    def _add_event(self, row: Row, event: Event) -> None:
        step, name = None, None
        if isinstance(event, HistogramLogged):
            step, name = event.step, event.name
        elif isinstance(event, AlertChanged):
            name = event.name
        elif isinstance(event, MessageLogged):
            name = event.level
        self._begin(row, row.envelope.tag, step, 1)
        self._texts[len(self._names)] = json_of(event)
        self._names.append(name)
        self._values.append(0.0)

    def _begin(self, row: Row, kind: str, step: int | None, count: int) -> None:
        self._counts.append(count)
        self._sources.append(row.source)
        self._sessions.append(row.session)
        self._rows.append(row.row)
        self._lates.append(row.is_late)
        self._kinds.append(kind)
        self._steps.append(NO_STEP if step is None else step)
        self._walls_us.append(row.envelope.wall_ns // 1000)


def json_of(event: Event) -> str:
    """Return the fields of an event as JSON; NaN and infinity become texts."""
    return msgspec.json.encode(plain(msgspec.structs.asdict(event))).decode()


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value that JSON can hold: NaN and infinity, which it does not have, as texts.

    Parts deeper than DEPTH_MAX become null.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else _NOT_FINITE[str(value)]
    if isinstance(value, dict | list | tuple) and depth == DEPTH_MAX:
        return None
    if isinstance(value, dict):
        return {str(name): plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    return value


_NOT_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
