"""Rates: growth per second of counters, from two readings and the time between them.

In: a counter's value and when it was read.
Out: growth per second.
Never: guesses. The first reading has no rate, nor has a counter that went backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class CounterRate:
    """Growth per second of one counter. Not thread-safe."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None

    def update(self, value: float, now_ns: int) -> float | None:
        """Return the growth per second since the last call, or None where it is not known.

        now_ns: monotonic time. A counter that went backwards was reset or has wrapped; its
        growth meanwhile is unknown.
        """
        last, self._last = self._last, (value, now_ns)
        if last is None or value < last[0] or now_ns <= last[1]:
            return None
        return (value - last[0]) * 1e9 / (now_ns - last[1])


class TotalRate:
    """The summed rate of a changing set of counters, such as disks. Not thread-safe.

    Each counter has a rate of its own, because a sum over all would leap by
    everything that a device ever counted when it is plugged in.
    """

    def __init__(self) -> None:
        self._rates: dict[str, CounterRate] = {}
        self.newest: dict[str, float] = {}
        """Rates of the single counters as of the last update, without those not known."""

    def update(self, values: Mapping[str, float], now_ns: int) -> float | None:
        """Return the growth per second of all together, or None if a known one went backwards."""
        known = self._rates.keys() & values.keys()
        self._rates = {name: self._rates.get(name, CounterRate()) for name in values}
        rates = {name: rate.update(values[name], now_ns) for name, rate in self._rates.items()}
        self.newest = {name: rate for name, rate in rates.items() if rate is not None}
        return _sum(rates[name] for name in known) if known else None


def _sum(rates: Iterable[float | None]) -> float | None:
    total = 0.0
    for rate in rates:
        if rate is None:
            return None
        total += rate
    return total
