"""Series: bounded, and no peak is lost by it."""

from __future__ import annotations

import math
import random

import pytest

from telemetry.views.series import Curve, Sample, Window, last_seconds, spread, thinned


@pytest.mark.parametrize("count", [10, 4096, 4097, 50_000])
def test_a_curve_keeps_its_ends_its_peaks_and_its_bound(count):
    curve = Curve()
    values = [random.Random(i).random() for i in range(count)]
    values[count // 3], values[count // 2] = 7.0, -7.0
    for x, y in enumerate(values):
        curve.add(x, y)

    kept = [point.y for point in curve.points]
    assert len(curve.points) <= 4096 and curve.is_thinned == (count > 4096)
    assert max(kept) == 7.0 and min(kept) == -7.0
    assert curve.points[-1] == (count - 1, values[-1])
    assert [p.x for p in curve.points] == sorted(p.x for p in curve.points)
    assert all(values[int(point.x)] == point.y for point in curve.points)


def test_a_value_that_is_no_number_is_kept():
    """It is what a person has to see."""
    points = [Sample(i, float(i)) for i in range(100)]
    points[50] = Sample(50, math.nan)

    assert [p.x for p in thinned(points) if p.y != p.y] == [50]


def test_a_window_forgets_what_is_older():
    window = Window(60)
    for second in range(1000):
        window.add(second, second)

    assert [window.points[0].x, window.points[-1].x] == [939, 999]
    assert window.last == (999, 999)
    assert [p.x for p in last_seconds(window.points, 2)] == [997, 998, 999]


def test_a_hole_is_spread_as_a_hole():
    points = [Sample(x, float(x)) for x in range(100) if not 40 <= x < 60]

    values = spread(points, 10, 100)

    assert values == [8.0 + 1, 19.0, 29.0, 39.0, None, None, 69.0, 79.0, 89.0, 99.0]
    assert spread([], 4, 10) == [None] * 4
