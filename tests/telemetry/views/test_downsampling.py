"""Downsampling keeps what a person has to see, and invents nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.views.column_types import Series
from telemetry.views.downsampling import downsample


def series(values: list[float]) -> Series:
    n = len(values)
    return Series(np.arange(n), np.arange(n) * 1.0, np.array(values, float), np.zeros(n, bool))


@given(values=st.lists(st.floats(), max_size=300), points_max=st.integers(0, 100))
def test_it_is_a_bounded_choice_of_the_points_with_both_ends(
    values: list[float], points_max: int
) -> None:
    """In their order, with the least and the greatest of all."""
    whole = series(values)

    found = downsample(whole, points_max)

    assert len(found.step) <= max(points_max, 8)
    assert np.all(np.diff(found.step) > 0)
    assert np.array_equal(whole.value[found.step], found.value, equal_nan=True)
    if values:
        assert found.step[0] == 0 and found.step[-1] == len(values) - 1
        numbers = [value for value in values if value == value]
        kept = [value for value in found.value if value == value]
        if numbers:
            assert (min(kept), max(kept)) == (min(numbers), max(numbers))
        assert np.isnan(found.value).any() == np.isnan(whole.value).any()


@pytest.mark.parametrize("peak", [1e9, -1e9, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1, 49_999, 99_998, 99_999])
def test_a_single_odd_point_among_many_is_kept(peak: float, place: int) -> None:
    values = [float(i % 7) for i in range(100_000)]
    values[place] = peak

    found = downsample(series(values), 500)

    assert place in found.step and len(found.step) <= 500


def test_a_short_series_stays_as_it_is() -> None:
    whole = series([1.0] * 50)

    assert downsample(whole, 50) is whole


def test_each_part_of_a_long_series_has_its_extremes() -> None:
    """And not only the whole: a wave is still one."""
    values = np.sin(np.arange(10_000) / 10_000 * 2 * np.pi * 20)

    found = downsample(series(values.tolist()), 600)

    for start in range(0, 10_000, 500):
        inside = found.value[(found.step >= start) & (found.step < start + 500)]
        assert inside.max() > 0.99 and inside.min() < -0.99
