"""Histograms: edges and counts of a script, checked, and merged to the allowed size.

In: sequences of numbers, or NumPy arrays.
Out: ascending edges around at most HISTOGRAM_MAX_BINS counts.
Never: invents a bin. Too many bins are merged with their neighbours, their counts added.
"""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any, Final

from shared.events import HISTOGRAM_MAX_BINS
from shared.values.scalars import Odd, odd, scalar_of

EDGES_MAX: Final = 65_537
"""Edges at most: a histogram is copied on the training thread, before its bins are merged."""


class NoHistogram(Exception):
    """Error: edges and counts that make no histogram; reason is short and stable, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def held_numbers(value: Any) -> Any:
    """Return the numbers of a list, tuple or array as a new list, or an Odd that says why not."""
    kind, numpy = type(value), sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        is_fit = value.ndim == 1 and value.size <= EDGES_MAX and value.dtype.kind in "biuf"
        advice = f"it is an array of {value.shape}; give numbers in one dimension"
        return value.tolist() if is_fit else Odd("not a histogram", advice)
    if issubclass(kind, list | tuple) and len(value) <= EDGES_MAX:
        return list(value)
    return value if type(value) is Odd else odd(value, kind)


def histogram_of(edges: Any, counts: Any) -> tuple[list[float], list[float]]:
    """Return edges and counts as floats, with at most HISTOGRAM_MAX_BINS bins.

    Raises:
        NoHistogram: not numbers, not one edge more than counts, or edges that do not ascend.
    """
    edge_list, count_list = _numbers("edges", edges), _numbers("counts", counts)
    if len(edge_list) != len(count_list) + 1:
        raise NoHistogram(
            "not a histogram", f"{len(edge_list)} edges for {len(count_list)} counts; one more"
        )
    if not all(low <= high for low, high in itertools.pairwise(edge_list)):
        raise NoHistogram("not a histogram", "its edges do not ascend")
    return _merged(edge_list, count_list)


def _numbers(name: str, values: Any) -> list[float]:
    held = held_numbers(values)
    if isinstance(held, Odd):
        raise NoHistogram(held.reason, f"its {name}: {held.advice}")
    found = [value if type(value) is float else scalar_of(value) for value in held]
    numbers: list[float] = []
    for number in found:
        if isinstance(number, Odd):
            raise NoHistogram(number.reason, f"one of its {name}: {number.advice}")
        if not isinstance(number, int | float):
            raise NoHistogram("not a histogram", f"one of its {name} is no number")
        numbers.append(float(number))
    return numbers


def _merged(edges: list[float], counts: list[float]) -> tuple[list[float], list[float]]:
    size = math.ceil(len(counts) / HISTOGRAM_MAX_BINS)
    if size <= 1:
        return edges, counts
    starts = range(0, len(counts), size)
    return [*edges[:-1:size], edges[-1]], [sum(counts[at : at + size]) for at in starts]
