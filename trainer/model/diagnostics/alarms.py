"""Alarms: sentences about quantization diagnostics that are outside of their healthy range.

In: diagnostics as numbers on the host, of the whole model or of single layers.
Out: one sentence for each number that is out of its range, by the metric's name.
Never: remembers earlier alarms; the caller finds out which of them are new.

The ranges are our choice. Symmetric ternary weights of a Gaussian row start at 7.2 dB;
a skewed binary code, which is what a wrong threshold leads to, stays under 4. In a tiny
model that has just become ternary, one or two of 1,000 codes flip in a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

ZERO_RATIO_RANGE = (0.10, 0.80)
LARGEST_IMBALANCE = 0.10
LEAST_WEIGHT_SQNR_DB = 5.0
LARGEST_FLIP_RATE = 0.05
LARGEST_OSCILLATING = 0.05
LARGEST_OVERLOAD = 0.05
"""The ideal is the share above the percentile, 0.003 to 0.005. Early in training a range lags
behind the data, and 0.02 is usual."""


def find_alarms(values: Mapping[str, float]) -> dict[str, str]:
    """Return a sentence for each metric that is out of range, in the order of the metrics."""
    return {
        name: sentence for name, value in values.items() for sentence in _judge(name, value, values)
    }


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
    if metric == "flip_rate_per_step" and value > LARGEST_FLIP_RATE:
        yield f"{name} is {value:.3f}, above {LARGEST_FLIP_RATE:.3f}: codes do not settle"
    if metric == "oscillating_ratio" and value > LARGEST_OSCILLATING:
        yield (
            f"{name} is {value:.3f}, above {LARGEST_OSCILLATING:.3f}: this share of the weights "
            "goes back and forth between two codes"
        )
    if metric == "flip_rate_per_step" and value == 0.0:
        yield f"{name} is 0: no code has changed in the steps before"
    if metric in ("activation_overload_rate", "overload_ratio") and value > LARGEST_OVERLOAD:
        yield f"{name} is {value:.3f}, above {LARGEST_OVERLOAD:.3f}"
    # A quantizer that QDrop bypassed gives its columns no gradient, as it should.
    is_whole = values.get(f"{place}/bypassed_ratio", 0.0) == 0.0
    if metric == "gradient_missing_ratio" and value > 0.0 and is_whole:
        yield f"{name} is {value:.3f}: this share of the parameters has no gradient"
