"""Downsampling: fewer points of a series that still show every peak and every dip.

In: a series.
Out: a series of a bounded number of its own points.
Never: an average: all values of the result are recorded ones.
"""

from __future__ import annotations

import numpy as np

from telemetry.views.column_types import Series


def downsample(series: Series, points_max: int) -> Series:
    """Return the least and the greatest value of each of equally many neighbours, in their order.

    The first and the last point stay, and of each group one that is not a number, which is what a
    person has to see. The result has at most points_max points, but never fewer than 8 may be
    asked for.
    """
    n = len(series.value)
    points_max = max(points_max, 8)
    if n <= points_max:
        return series
    groups = (points_max - 2) // 3
    starts = np.linspace(0, n, groups, endpoint=False).astype(np.int64)
    value = series.value
    is_number = ~np.isnan(value)
    kept = [np.array([0, n - 1])]
    # As ufunc.reduceat has no arg-version: find the extreme of each group, then its first place.
    group = np.repeat(np.arange(groups), np.diff(np.append(starts, n)))
    for extreme in (
        np.minimum.reduceat(np.where(is_number, value, np.inf), starts),
        np.maximum.reduceat(np.where(is_number, value, -np.inf), starts),
    ):
        kept.append(_first_of_each(group, (value == extreme[group]) & is_number))
    kept.append(_first_of_each(group, ~is_number))
    at = np.unique(np.concatenate(kept))
    return Series(*(column[at] for column in series))


def _first_of_each(group: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the first place of each group at which wanted is true."""
    at = np.flatnonzero(wanted)
    _, first = np.unique(group[at], return_index=True)
    return at[first]
