"""Goodput: the share of a run's time that became training, and the causes of the rest.

In: the columns of a run.
Out: seconds and shares by cause, which add up to all of its time; `docs/VIEWS.md` defines them.
Never: counts a second twice, or a step that was done again as progress.

The terms are those of Google's ML Goodput Measurement (cloud.google.com/tpu/docs/goodput):
goodput is the share of elapsed time spent on training progress that was preserved, badput the
rest by its cause. Ours begins with the first RunStarted: waiting in a queue is not recorded, and
neither is a program's efficiency on its hardware. So it is their runtime goodput alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from shared.ids import MAIN_SOURCE
from telemetry.views.column_chunk import Floats, Ints
from telemetry.views.column_types import Rows, Series, SessionSpan
from telemetry.views.columns import RunColumns, read_columns
from telemetry.views.step_times import StepTimes, step_times_of

TRAINING, EVALUATION, CHECKPOINT, STARTUP, RESTART, LOST_WORK, STALLED, UNKNOWN = CAUSES = (
    "training", "evaluation", "checkpoint", "startup", "restart", "lost_work", "stalled", "unknown",
)  # fmt: skip

STALL_RATIO: Final = 5.0
"""Seconds a step above this many times the session's median are a stall, ..."""
STALL_MIN_S: Final = 10.0
"""... if they are at least so many more."""
LENGTH_MAX_S: Final = 1e9
"""A longer phase is a number that somebody logged by that name."""
SPANS: Final = {EVALUATION: "time/evaluation_seconds", CHECKPOINT: "time/checkpoint_seconds"}


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a run by cause, over all its main sessions and the time between them.

    total_s: from the first RunStarted to the last row. seconds, ratios: by CAUSES; the ratios add
    up to 1, and are empty for a run without length. goodput_ratio: that of training. steps: logged
    ones, each counted once; lost_steps: those that were done again.
    """

    total_s: float
    seconds: dict[str, float]
    ratios: dict[str, float]
    goodput_ratio: float | None
    sessions: int
    steps: int
    lost_steps: int
    step_times: StepTimes


class _Session(NamedTuple):
    """One main session: its time and its rows of training.

    lost_from: the first step that a later session did again. resumed_from: the step it went on
    from. Shapes: steps and wall_s (n,), in the order of the journal. step_seconds: of the first
    row, None if unknown.
    """

    begin_s: float
    end_s: float
    has_finished: bool
    resumed_from: int
    lost_from: float
    steps: Ints
    wall_s: Floats
    step_seconds: float | None


def goodput_of_run(run_dir: Path) -> Goodput:
    """Read a run and compute its goodput.

    Raises:
        CommandError: it is not the directory of a recorded run.
    """
    with read_columns(run_dir) as columns:
        return goodput_of(columns)


def goodput_of(columns: RunColumns) -> Goodput:
    """Compute the goodput of a run as of the columns' last update."""
    sessions = _sessions(columns)
    phases = {cause: _Phase(columns.series(name, MAIN_SOURCE)) for cause, name in SPANS.items()}
    seconds = dict.fromkeys(CAUSES, 0.0)
    total_s = sessions[-1].end_s - sessions[0].begin_s if sessions else 0.0
    for number, session in enumerate(sessions):
        if number:
            seconds[RESTART] += session.begin_s - sessions[number - 1].end_s
        starting = RESTART if number else STARTUP
        for cause, spent_s in _spent(session, phases, starting).items():
            seconds[cause] += spent_s
    ratios = {cause: each / total_s for cause, each in seconds.items()} if total_s > 0 else {}
    steps = [session.steps for session in sessions]
    return Goodput(
        total_s=total_s,
        seconds=seconds,
        ratios=ratios,
        goodput_ratio=ratios.get(TRAINING),
        sessions=len(sessions),
        steps=len(np.unique(np.concatenate(steps))) if steps else 0,
        lost_steps=sum(int(np.count_nonzero(s.steps >= s.lost_from)) for s in sessions),
        step_times=step_times_of(columns),
    )


def _spent(session: _Session, phases: dict[str, _Phase], starting: str) -> dict[str, float]:
    """Return the seconds of one session by cause; they add up to its length.

    starting: the cause of the time before the first step.
    """
    edges, counts = _windows(session)
    # In each window: phases outside of steps, and what they leave.
    rest = np.diff(edges)
    spent = {}
    for cause, phase in phases.items():
        within = np.minimum(np.diff(phase.before(edges)), rest)
        spent[cause] = float(within.sum())
        rest = rest - within
    if not len(counts):
        # Without a step: a start that came to nothing, as far as is known.
        return {**spent, UNKNOWN if session.has_finished else starting: float(rest.sum())}
    # The steps: a stall is what is far above the usual; then what was lost, by steps.
    usual = np.float64(np.median(rest[1:-1] / counts)) * counts
    stalled = _stalled(rest[1:-1], usual)
    lost = np.clip((session.steps.astype(np.float64) - (session.lost_from - 1)) / counts, 0, 1)
    useful = rest[1:-1] - stalled
    # A session that ends without saying so, long after its last step, hung before.
    tail = rest[-1:]
    hung = np.zeros(1) if session.has_finished else _stalled(tail, usual[-1:])
    return {
        **spent,
        starting: float(rest[0]),
        STALLED: float(stalled.sum() + hung[0]),
        LOST_WORK: float((useful * lost).sum()),
        TRAINING: float((useful * (1 - lost)).sum()),
        UNKNOWN: float(tail[0] - hung[0]),
    }


def _stalled(spent_s: Floats, usual_s: Floats) -> Floats:
    """Return how much of each time is a stall: all above the usual, if that is a lot."""
    excess_s = spent_s - usual_s
    return np.where((spent_s > STALL_RATIO * usual_s) & (excess_s >= STALL_MIN_S), excess_s, 0.0)


def _windows(session: _Session) -> tuple[Floats, Floats]:
    """Return the borders of the windows between logged steps (n + 2,), and steps in each (n,).

    The first window is the time before the first step, and the last that behind the last.
    """
    if not len(session.steps):
        return np.array([session.begin_s, session.end_s]), np.empty(0)
    # As floats: a script may log any step, and the difference of two may not fit into an int.
    steps = session.steps.astype(np.float64)
    counts = np.maximum(1.0, np.diff(steps, prepend=float(session.resumed_from)))
    wall_s = np.clip(np.maximum.accumulate(session.wall_s), session.begin_s, session.end_s)
    first_s = session.step_seconds
    if first_s is None and len(wall_s) > 1:
        first_s = float(np.median(np.diff(wall_s) / counts[1:]))
    began_s = max(session.begin_s, float(wall_s[0]) - (first_s or 0.0) * float(counts[0]))
    return np.array([session.begin_s, began_s, *wall_s, session.end_s]), counts


class _Phase:
    """The times of one phase outside of steps, each told at its end."""

    def __init__(self, told: Series) -> None:
        order = np.argsort(told.wall_s, kind="stable")
        ends = told.wall_s[order]
        lengths = np.clip(np.nan_to_num(told.value[order], posinf=0), 0, LENGTH_MAX_S)
        # No moment counts twice: a phase does not begin before the one before it ends.
        begins = np.maximum(ends - lengths, np.concatenate([[-np.inf], ends[:-1]])[: len(ends)])
        self._at = np.column_stack([begins, ends]).ravel()
        total = np.cumsum(ends - begins)
        self._total = np.column_stack([total - (ends - begins), total]).ravel()

    def before(self, times: Floats) -> Floats:
        """Return how much of the phase lies before each of these times."""
        return np.interp(times, self._at, self._total) if len(self._at) else np.zeros(len(times))


# --- from columns


def _sessions(columns: RunColumns) -> list[_Session]:
    """Return the main sessions by their beginnings; none ends behind the beginning of the next."""
    spans = columns.sessions
    main = [i for i, each in enumerate(spans) if each.source == MAIN_SOURCE]
    main.sort(key=lambda i: _begin_of(spans[i]))
    rows = columns.rows_of_kind("train")
    if not len(rows.step):  # a script that logs without naming a kind
        rows = columns.rows_of_kind("custom")
    step_seconds = columns.series("train/step_seconds", MAIN_SOURCE)
    limits = [*(_begin_of(spans[i]) for i in main[1:]), float("inf")]
    return [
        _session(spans[i], limit_s, Rows(*(c[rows.session == i] for c in rows)), step_seconds)
        for i, limit_s in zip(main, limits, strict=False)
    ]


def _session(span: SessionSpan, limit_s: float, rows: Rows, step_seconds: Series) -> _Session:
    # Of rows of one step, as wide ones are split, the last counts.
    is_last = np.append(np.diff(rows.step) != 0, True)[: len(rows.step)]
    steps, wall_s = rows.step[is_last], rows.wall_s[is_last]
    found = step_seconds.value[np.isin(step_seconds.wall_s, rows.wall_s[:1])]
    begin_s = _begin_of(span)
    return _Session(
        begin_s=begin_s,
        end_s=max(begin_s, min(limit_s, span.last_wall_s)),
        has_finished=span.status is not None,
        resumed_from=_resumed_from(span.resumed_from_step, steps),
        lost_from=float("inf") if span.superseded_from is None else span.superseded_from,
        steps=steps,
        wall_s=wall_s,
        step_seconds=float(found[0]) if len(found) and found[0] > 0 else None,
    )


def _resumed_from(told: int | None, steps: Ints) -> int:
    """Return the step before the first of a session: as told, or as its later rows suggest."""
    if told is not None or not len(steps):
        return told or 0
    usual = int(np.median(np.diff(steps.astype(np.float64)))) if len(steps) > 1 else 1
    return int(steps[0]) - max(1, min(int(steps[0]), usual))


def _begin_of(span: SessionSpan) -> float:
    return span.first_wall_s if span.started_wall_s is None else span.started_wall_s
