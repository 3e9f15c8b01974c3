"""The values that columns are handed out as.

In: nothing.
Out: plain tuples of numpy arrays.
Never: reads a file.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from telemetry.views.column_chunk import Floats, Ints
from telemetry.views.column_state import StreamState

_NUMBERS: Final = re.compile(r"(\d+)")


class Series(NamedTuple):
    """The values of one name from one source, in the order of the journal.

    Shapes: all (n,). step: -1 where the event has no step. wall_s: Unix time in s. superseded:
    True for rows that a later session wrote again after a restart.
    """

    step: Ints
    wall_s: Floats
    value: Floats
    superseded: NDArray[np.bool_]


class Histogram(NamedTuple):
    """A histogram: counts (n,) between ascending edges (n + 1,); step is None without one."""

    step: int | None
    wall_s: float
    edges: Floats
    counts: Floats
    superseded: bool


class SessionSpan(NamedTuple):
    """One session of one source. Times are Unix times in s; steps are None where it has none.

    started_wall_s: time of its RunStarted. status: that of its RunFinished, None without one.
    superseded_from: the first of its steps that a later session did again; None for none, and
    for the newest. is_superseded: True if there is such a step.
    """

    source: str
    session: str
    first_wall_s: float
    last_wall_s: float
    first_step: int | None
    last_step: int | None
    started_wall_s: float | None
    resumed_from_step: int | None
    status: str | None
    exit_code: int | None
    finished_wall_s: float | None
    host: str
    is_late: bool
    superseded_from: int | None
    is_superseded: bool


class LayerGrid(NamedTuple):
    """One metric of all layers over steps, for a heat map.

    Shapes: steps (t,), ascending; value (number of layers, t), NaN where a layer has none.
    Superseded rows are left out.
    """

    layers: list[str]
    steps: Ints
    value: Floats


class Rows(NamedTuple):
    """The rows of one kind from one source that have a step, in the order of the journal.

    Shapes: all (n,). session: place in `RunColumns.sessions`.
    """

    step: Ints
    wall_s: Floats
    session: NDArray[np.int32]
    superseded: NDArray[np.bool_]


def span_of(state: StreamState, superseded_from: int | None) -> SessionSpan:
    """Return a session as it is handed out."""
    return SessionSpan(
        source=state.source,
        session=state.session,
        first_wall_s=(state.first_wall_ns or 0) / 1e9,
        last_wall_s=state.last_wall_ns / 1e9,
        first_step=state.first_step,
        last_step=state.last_step,
        started_wall_s=_seconds(state.started_wall_ns),
        resumed_from_step=state.resumed_from_step,
        status=state.status,
        exit_code=state.exit_code,
        finished_wall_s=_seconds(state.finished_wall_ns),
        host=state.host,
        is_late=state.is_late,
        superseded_from=superseded_from,
        is_superseded=superseded_from is not None,
    )


def _seconds(wall_ns: int | None) -> float | None:
    return None if wall_ns is None else wall_ns / 1e9


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which layers.2 comes before layers.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBERS.split(name)]
