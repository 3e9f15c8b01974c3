"""Run data: a run's columns as the plain values that charts draw.

In: `RunColumns`, and what a chart asks for.
Out: dictionaries for JSON, bounded in size.
Never: leaves out a peak, a dip, or a value that is not a number; texts of a producer go out with
their control characters shown as codes.

A point has a step and a wall time: charts draw over either. Rows without a step, such as those
of the hardware, get the step that rank 0 was at.
"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
import numpy as np

from shared.ids import MAIN_SOURCE
from telemetry.monitor.figures import loss_name
from telemetry.page.problems import BadQuery
from telemetry.page.run_list import text
from telemetry.views.columns import RunColumns, Series
from telemetry.views.downsampling import downsample
from telemetry.views.goodput import goodput_of
from telemetry.views.goodput_lines import goodput_lines
from telemetry.views.run_state import state_of

POINTS_MAX: Final = 5000
MARKS_MAX: Final = 2000
NAMES_MAX: Final = 8192
CONFIG_MAX: Final = 500
Clock = tuple[np.ndarray, np.ndarray]
"""Wall times in s, ascending, and the step that rank 0 was at. Shapes: (n,) each."""
AXES: Final = ("step", "time")
TOTAL_STEPS: Final = ("total_steps", "max_steps")


class View(msgspec.Struct, frozen=True):
    """A part of a run: the axis, its bounds, and the number of points of each series."""

    axis: str = "step"
    low: float | None = None
    high: float | None = None
    points: int = 1000

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise BadQuery(f"x={text(self.axis, 40)} must be step or time")
        if not 8 <= self.points <= POINTS_MAX:
            raise BadQuery(f"points={self.points} must be from 8 to {POINTS_MAX}")


def overview(columns: RunColumns, *, is_served: bool) -> dict[str, Any]:
    """Return all of a run but the values of its series."""
    info = columns.info
    spans = columns.sessions
    last_s = max((span.last_wall_s for span in spans), default=None)
    main = [span for span in spans if span.source == MAIN_SOURCE]
    first_s = min((span.first_wall_s for span in main or spans), default=None)
    names = [
        {"name": name, "source": source}
        for source in columns.sources()
        for name in columns.names(source)
    ][:NAMES_MAX]
    config = dict(list((info.config or {}).items())[:CONFIG_MAX])
    return {
        "run_id": columns.run_id,
        "name": text(info.name or columns.run_id),
        "project": text(info.project),
        "state": text(state_of(info, last_s, time.time(), is_attended=is_served), 60),
        "host": text(info.host),
        "tags": [text(tag, 60) for tag in (info.tags or [])[:20]],
        "notes": text(info.notes, 4000),
        "config": {text(key, 200): text(_shown(value), 500) for key, value in config.items()},
        "rows": columns.rows,
        "first_s": first_s,
        "last_s": last_s,
        "now_s": time.time(),
        "step": max((span.last_step for span in main if span.last_step is not None), default=None),
        "total_steps": _total_steps(info.config or {}),
        "loss_name": loss_name(entry["name"] for entry in names),
        "names": names,
        "layer_metrics": columns.layer_metrics(),
        "histograms": columns.histogram_names(),
        "texts": {text(k, 200): text(v, 200) for k, v in columns.last_texts().items()},
        "marks": _marks(columns),
        "sessions": [_session(span) for span in spans[:500]],
        "left_out": columns.left_out,
    }


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _total_steps(config: dict[str, Any]) -> int | None:
    found = (config.get(name) for name in TOTAL_STEPS)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)


def _marks(columns: RunColumns) -> list[dict[str, Any]]:
    """Return the newest marks; of those that explain a curve, the others go first."""
    marks = columns.marks
    plain = [mark for mark in marks if mark.kind == "message"]
    kept = [mark for mark in marks if mark.kind != "message"][-MARKS_MAX:]
    kept += plain[-max(0, MARKS_MAX - len(kept)) :] if len(kept) < MARKS_MAX else []
    return [
        mark._asdict() | {"text": text(mark.text), "source": text(mark.source, 200)}
        for mark in sorted(kept, key=lambda mark: mark.wall_s)
    ]


def _session(span: Any) -> dict[str, Any]:
    fields: dict[str, Any] = span._asdict()
    return fields | {"source": text(span.source, 200), "host": text(span.host, 200)}


def time_spent(columns: RunColumns) -> dict[str, Any]:
    """Return the time of a run by cause, and lines that tell it: none for a run without steps."""
    found = goodput_of(columns)
    return {"ratios": found.ratios, "seconds": found.seconds, "lines": goodput_lines(found)}


def series_of(
    columns: RunColumns, wanted: list[tuple[str, str]], view: View
) -> list[dict[str, Any]]:
    """Return the series of each (source, name), thinned to the points of a view."""
    clock: Clock | None = None
    found = []
    for source, name in wanted:
        series = columns.series(name, source)
        # Only where it is needed: on a long run it is the larger part of the work.
        if clock is None and (series.step < 0).any():
            clock = step_clock(columns)
        found.append({"source": source, "name": name, **_thinned(series, view, clock)})
    return found


def step_clock(columns: RunColumns) -> Clock:
    """Return wall times in s, ascending, and the step that rank 0 was at."""
    name = next(iter(columns.names(MAIN_SOURCE)), "")
    loss = loss_name(columns.names(MAIN_SOURCE)) or name
    series = columns.series(loss, MAIN_SOURCE)
    has_step = series.step >= 0
    wall_s, step = series.wall_s[has_step], series.step[has_step]
    order = np.argsort(wall_s, kind="stable")
    return wall_s[order], step[order].astype(float)


def _thinned(series: Series, view: View, clock: Clock | None) -> dict[str, Any]:
    """Return the points of a view: those that hold, and those that a restart wrote again."""
    step = series.step.astype(float)
    missing = series.step < 0
    if clock is not None and missing.any():
        wall_s, at = clock
        step[missing] = np.interp(series.wall_s[missing], wall_s, at) if len(at) else np.nan
    axis = step if view.axis == "step" else series.wall_s
    inside = ~np.isnan(axis)
    if view.low is not None:
        inside &= _from_before(axis, view.low)
    if view.high is not None:
        inside &= _to_behind(axis, view.high)
    held = inside & ~series.superseded
    found = {"count": int(inside.sum()), **_points(series, step, held, view.points)}
    if (over := inside & series.superseded).any():
        found["former"] = _points(series, step, over, view.points)
    return found


def _from_before(axis: np.ndarray, low: float) -> np.ndarray:
    """Return the points from low on, with the last one before it: the line comes in from there."""
    before = axis[axis < low]
    return axis >= (before.max() if len(before) else low)


def _to_behind(axis: np.ndarray, high: float) -> np.ndarray:
    behind = axis[axis > high]
    return axis <= (behind.min() if len(behind) else high)


def _points(series: Series, step: np.ndarray, kept: np.ndarray, points: int) -> dict[str, Any]:
    # The step of a row travels with it through the thinning, in place of the recorded one.
    part = Series(np.flatnonzero(kept), *(column[kept] for column in series[1:]))
    thin = downsample(part, points)
    return {
        "step": _rounded(step[thin.step]),
        "wall_s": np.round(thin.wall_s, 3).tolist(),
        "value": _rounded(thin.value),
        "odd": _odd(thin.value),
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    """Return values in 9 significant digits; None for those that JSON can't say."""
    return [
        None
        if not np.isfinite(v)
        else int(v)
        if v == int(v) and abs(v) < 2**53
        else float(f"{v:.9g}")
        for v in values.tolist()
    ]


def _odd(values: np.ndarray) -> list[tuple[int, str]]:
    """Return places and words of the values that are not finite."""
    return [(int(i), str(float(values[i]))) for i in np.flatnonzero(~np.isfinite(values))]
