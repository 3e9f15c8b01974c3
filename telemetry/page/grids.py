"""Grids: heat maps of a metric by layer, and of a histogram, over the steps of a run.

In: `RunColumns`, a name, a number of columns.
Out: dictionaries for JSON: x, y and the values between, bounded in size.
Never: hides that columns were put together: `steps_each` says how many recorded moments one
column stands for; its value is their mean.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from telemetry.page.run_data import step_clock
from telemetry.views.columns import Histogram, RunColumns

COLUMNS_MAX: Final = 300
BINS: Final = 64
LAYERS_MAX: Final = 1000


def layer_grid(columns: RunColumns, metric: str) -> dict[str, Any]:
    """Return one metric of every layer over steps."""
    grid = columns.layer_grid(metric)
    groups = _groups(len(grid.steps))
    value = _means(grid.value[:LAYERS_MAX], groups)
    return {
        "metric": metric,
        "y": grid.layers[:LAYERS_MAX],
        "step": grid.steps[groups].tolist() if len(groups) else [],
        "wall_s": _times(columns, grid.steps[groups]) if len(groups) else [],
        "z": _listed(value),
        "steps_each": _each(len(grid.steps), len(groups)),
    }


def histogram_grid(columns: RunColumns, name: str) -> dict[str, Any]:
    """Return the histograms of one name as shares of common bins, over steps."""
    found = [h for h in columns.histograms(name) if h.step is not None and not h.superseded]
    found = [h for h in found if np.isfinite(h.edges).all() and h.counts.sum() > 0]
    if not found:
        return {"name": name, "y": [], "step": [], "wall_s": [], "z": [], "steps_each": 1}
    low, high = min(h.edges[0] for h in found), max(h.edges[-1] for h in found)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    shares = np.stack([_shares(h, edges) for h in found], axis=1)
    groups = _groups(len(found))
    return {
        "name": name,
        "y": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "step": [found[i].step for i in groups],
        "wall_s": [found[i].wall_s for i in groups],
        "z": _listed(_means(shares, groups)),
        "steps_each": _each(len(found), len(groups)),
    }


def _shares(histogram: Histogram, edges: np.ndarray) -> np.ndarray:
    """Return the share of each common bin, counts spread evenly within their own bins."""
    upto = np.concatenate([[0.0], np.cumsum(histogram.counts)])
    shares: np.ndarray = np.diff(np.interp(edges, histogram.edges, upto)) / upto[-1]
    return shares


def _groups(count: int) -> np.ndarray:
    """Return the first place of each group of neighbours, at most COLUMNS_MAX of them."""
    places = np.linspace(0, count, min(count, COLUMNS_MAX), endpoint=False)
    return np.unique(places.astype(np.int64))


def _means(value: np.ndarray, groups: np.ndarray) -> np.ndarray:
    if not len(groups) or not len(value):
        return np.empty((len(value), 0))
    is_number = np.isfinite(value)
    total = np.add.reduceat(np.where(is_number, value, 0.0), groups, axis=1)
    count = np.add.reduceat(is_number.astype(float), groups, axis=1)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = total / count
    return means


def _each(count: int, groups: int) -> int:
    return -(-count // groups) if groups else 1


def _times(columns: RunColumns, steps: np.ndarray) -> list[float]:
    """Return the wall time at which rank 0 was at a step."""
    wall_s, at = step_clock(columns)
    order = np.argsort(at, kind="stable")
    found: list[float] = np.interp(steps, at[order], wall_s[order]).tolist() if len(at) else []
    return found


def _listed(value: np.ndarray) -> list[list[float | None]]:
    return [
        [None if not np.isfinite(v) else float(f"{v:.5g}") for v in row] for row in value.tolist()
    ]
