"""Restarts: the sessions of a run in their order, and the steps that were done again.

In: the rows of a journal, and the first and last moments of each session.
Out: for each session the step from which on a later one wrote the steps again.
Never: decides which session is the newest: `telemetry.sessions` does.

A rank that is started again goes back to a checkpoint, or to the beginning. The steps behind
that place are done a second time, so those of its earlier sessions are superseded.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.events import RunFinished, RunStarted
from shared.ids import MAIN_SOURCE, WORKER
from telemetry.journal.rows import Row
from telemetry.sessions import begins_newest
from telemetry.views.column_chunk import NO_STEP, Moments
from telemetry.views.column_state import State, StreamState

NEVER: Final = 2**63 - 1
"""A step that no row is at or behind."""


def is_rank(source: str) -> bool:
    """Return True for the source of a training process, and not of a worker of one."""
    return source.startswith("rank") and WORKER not in source


def place_before_newest(state: State, source: str, place: int) -> None:
    """Order a session of a rank that has not said, or said late, that it started."""
    order = state.orders.setdefault(source, [])
    newest = state.newest.get(source)
    order.insert(len(order) if newest is None else order.index(newest), place)


def note_start(state: State, row: Row, event: RunStarted, place: int) -> None:
    """Note a RunStarted. It makes its session the newest of its rank, unless it is late."""
    session = state.streams[place]
    session.started_wall_ns = row.envelope.wall_ns
    session.resumed_from_step, session.host = event.resumed_from_step, event.host
    # One rule for all ranks: that of the session that speaks for the run.
    if is_rank(row.source) and begins_newest(MAIN_SOURCE, event, is_late=row.is_late):
        session.is_late = False
        order = state.orders[row.source]
        order.remove(place)
        order.append(place)
        state.newest[row.source] = place


def note_finish(session: StreamState, row: Row, event: RunFinished) -> None:
    """Note a RunFinished."""
    session.status, session.exit_code = event.status, event.exit_code
    session.finished_wall_ns = row.envelope.wall_ns


def note_time(session: StreamState, wall_ns: int) -> None:
    """Note the time of a row."""
    first = session.first_wall_ns
    session.first_wall_ns = wall_ns if first is None else min(first, wall_ns)
    session.last_wall_ns = max(session.last_wall_ns, wall_ns)


def note_spans(streams: list[StreamState], moments: Moments) -> None:
    """Note the times and steps of all moments of a chunk, each at its session."""
    if not len(moments.step):
        return
    order = np.argsort(moments.stream, kind="stable")
    places, starts = np.unique(moments.stream[order], return_index=True)
    for place, of_stream in zip(places, np.split(order, starts[1:]), strict=True):
        session = streams[place]
        wall_ns, step = moments.wall_ns[of_stream], moments.step[of_stream]
        note_time(session, int(wall_ns.min()))
        note_time(session, int(wall_ns.max()))
        steps = step[step != NO_STEP]
        if len(steps):
            if session.first_step is None:
                session.first_step = int(steps[0])
            session.last_step = int(steps[-1])


def superseded_from(state: State) -> NDArray[np.int64]:
    """Return for each session the first step that a later session wrote again, or NEVER."""
    found = np.full(len(state.streams), NEVER, np.int64)
    for order in state.orders.values():
        limit = NEVER
        for place in reversed(order):
            found[place] = limit
            limit = min(limit, _first_step_of(state.streams[place]))
    return found


def _first_step_of(session: StreamState) -> int:
    """Return the first step that a session does: behind its checkpoint, or the first it told."""
    if session.resumed_from_step is not None:
        return min(session.resumed_from_step + 1, NEVER)
    return NEVER if session.first_step is None else session.first_step
