"""Ratios of what was measured in the same round, this checkout against an older one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def summary(before: Sequence[float], now: Sequence[float], text: str, decimals: int = 0) -> str:
    """Return both medians, and the median and the quartiles of the ratios within each round."""
    ratios = [new / old for old, new in zip(before, now, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    first, second = statistics.median(before), statistics.median(now)
    return (
        f"{text}: {first:,.{decimals}f} before, {second:,.{decimals}f} now, "
        f"ratio {middle:.3f} (quartiles {low:.3f} to {high:.3f}), {len(ratios)} rounds"
    )
