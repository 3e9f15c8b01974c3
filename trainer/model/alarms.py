"""Alarms: what of the diagnostics a person should look at.

In: diagnostics as numbers on the host, aggregates or those of single layers.
Out: one sentence for each that is out of its range.
Never: remembers what it said; the caller tells changes of state apart.

The ranges are our choice. Symmetric ternary weights of a Gaussian row start at 7.2 dB;
a skewed binary code, which is what a wrong threshold leads to, stays under 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

ZERO_RATIO_RANGE = (0.10, 0.80)
LARGEST_IMBALANCE = 0.10
LEAST_WEIGHT_SQNR_DB = 5.0


def find_alarms(values: Mapping[str, float]) -> list[str]:
    """Sentences about what is out of range, in the order of the metrics."""
    return [sentence for name, value in values.items() for sentence in _judge(name, value, values)]


def _judge(name: str, value: float, values: Mapping[str, float]) -> Iterator[str]:
    place, _, metric = name.rpartition("/")
    low, high = ZERO_RATIO_RANGE
    if metric == "zero_ratio" and not low <= value <= high:
        yield f"{name} is {value:.2f}, outside of {low:.2f} to {high:.2f}"
    if metric == "plus_ratio":
        imbalance = abs(value - values.get(f"{place}/minus_ratio", value))
        if imbalance > LARGEST_IMBALANCE:
            yield (
                f"{place}: the shares of +1 and -1 differ by {imbalance:.2f}, "
                f"more than {LARGEST_IMBALANCE:.2f}"
            )
    if metric == "weight_sqnr_db" and value < LEAST_WEIGHT_SQNR_DB:
        yield f"{name} is {value:.1f} dB, below {LEAST_WEIGHT_SQNR_DB:.1f}"
