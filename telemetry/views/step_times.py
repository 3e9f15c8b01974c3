"""Step times: the parts of a step, and the rank that the others wait for.

In: the columns of a run.
Out: mean seconds by part; for several ranks each one's work and wait, and the slow one by name.
Never: counts steps that were done again, or names a rank where they take turns at being slow.

A rank's work is its own part of a step, before it waits for the gradients of the others
(`rank/<n>/work_seconds`). It waits for as long as the slowest rank works longer than it does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from telemetry.views.column_chunk import NO_STEP, Floats, Ints
from telemetry.views.columns import RunColumns

PARTS: Final = ("input", "forward", "backward", "optimizer")
OTHER: Final = "other"
INPUT, COMPUTE, WAITING = CAUSES = ("input", "compute", "waiting")

STRAGGLER_RATIO: Final = 1.1
"""A rank is slow above this many times the median work of the ranks."""
WAITING_RATIO: Final = 0.1
"""Ranks take turns at being slow if their mean wait is above this share of a step."""

_WORK: Final = re.compile(r"rank/(\d+)/work_seconds")


class RankTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Means of one rank over the logged steps. input_s: None where the rank did not tell it."""

    rank: int
    work_s: float
    input_s: float | None
    waiting_s: float


class Straggler(msgspec.Struct, frozen=True, kw_only=True):
    """The slow one of several ranks. cause: input or compute, whichever makes most of excess_s.

    ratio: its work / the median of all. excess_s: the difference of the two, a step. Where ranks
    take turns at being slow, rank is None, cause is waiting, and excess_s is the mean wait.
    """

    rank: int | None
    cause: str
    ratio: float
    excess_s: float


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Mean times of a step. step_s: None for a run that does not tell it. parts: by PARTS, where
    the run tells them, and OTHER for the rest of step_s."""

    step_s: float | None = None
    parts: dict[str, float] = {}
    ranks: list[RankTimes] = []
    straggler: Straggler | None = None


def step_times_of(columns: RunColumns) -> StepTimes:
    """Compute the mean times of the steps of a run."""
    step_s = _mean(_by_step(columns, "train/step_seconds")[1])
    told = {part: _mean(_by_step(columns, f"train/{part}_seconds")[1]) for part in PARTS}
    parts = {part: mean for part, mean in told.items() if mean is not None}
    if parts and step_s is not None:
        parts[OTHER] = max(0.0, step_s - sum(parts.values()))
    ranks, ratio_of = _ranks(columns)
    straggler = _straggler(ranks, ratio_of, step_s) if len(ranks) > 1 else None
    return StepTimes(step_s=step_s, parts=parts, ranks=ranks, straggler=straggler)


def _ranks(columns: RunColumns) -> tuple[list[RankTimes], dict[int, float]]:
    """Return the times of each rank, and its work / the median of all ranks."""
    numbers = sorted(int(m[1]) for n in columns.names() if (m := _WORK.fullmatch(n)))
    work = {n: _by_step(columns, f"rank/{n}/work_seconds") for n in numbers}
    common = _common([steps for steps, _ in work.values()])
    if len(numbers) < 2 or not len(common):
        return [], {}
    # Shapes: (ranks, steps), of the steps that all ranks have told.
    table = np.stack([values[np.isin(steps, common)] for steps, values in work.values()])
    waits = (table.max(axis=0) - table).mean(axis=1)
    means = table.mean(axis=1)
    median = float(np.median(means))
    ranks = [
        RankTimes(
            rank=number,
            work_s=float(means[i]),
            input_s=_mean(_by_step(columns, f"rank/{number}/input_seconds")[1]),
            waiting_s=float(waits[i]),
        )
        for i, number in enumerate(numbers)
    ]
    return ranks, {n: float(means[i]) / median for i, n in enumerate(numbers) if median > 0}


def _straggler(
    ranks: list[RankTimes], ratio_of: Mapping[int, float], step_s: float | None
) -> Straggler | None:
    """Return the rank that is slow, or that ranks take turns at it; None if none is slow."""
    if not ratio_of:
        return None
    slow = max(ranks, key=lambda rank: rank.work_s)
    ratio = ratio_of[slow.rank]
    if ratio >= STRAGGLER_RATIO:
        excess_s = slow.work_s - float(np.median([rank.work_s for rank in ranks]))
        inputs = [rank.input_s for rank in ranks if rank.input_s is not None]
        of_input = 0.0
        if slow.input_s is not None:
            of_input = slow.input_s - float(np.median(inputs))
        cause = INPUT if of_input >= excess_s / 2 else COMPUTE
        return Straggler(rank=slow.rank, cause=cause, ratio=ratio, excess_s=excess_s)
    waiting_s = float(np.mean([rank.waiting_s for rank in ranks]))
    if step_s and waiting_s >= WAITING_RATIO * step_s:
        return Straggler(rank=None, cause=WAITING, ratio=ratio, excess_s=waiting_s)
    return None


def _by_step(columns: RunColumns, name: str) -> tuple[Ints, Floats]:
    """Return the steps of a series, ascending, and its last value of each that counts."""
    series = columns.series(name)
    counts = ~series.superseded & (series.step != NO_STEP) & np.isfinite(series.value)
    # np.unique gives the first place of each: of the reverse that is the last.
    steps, first = np.unique(series.step[counts][::-1], return_index=True)
    return steps, series.value[counts][::-1][first]


def _common(all_steps: list[Ints]) -> Ints:
    """Return the steps that all have."""
    found = all_steps[0] if all_steps else np.empty(0, np.int64)
    for steps in all_steps[1:]:
        found = np.intersect1d(found, steps)
    return found


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
