"""Pressure: share of time in which tasks waited for the CPU, for memory or for I/O.

In: /proc/pressure, the kernel's pressure stall information (PSI).
Out: `pressure/<resource>_some_ratio` and `…_full_ratio`, means since the last reading.
Never: the kernel's own averages, which look back over times of their own.

    some avg10=0.00 avg60=0.00 avg300=0.00 total=12345      total is in microseconds
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shared.clock import Clock
from telemetry.hardware.probe import Values
from telemetry.hardware.rates import CounterRate

RESOURCES: Final = ("cpu", "memory", "io")


class PressureProbe:
    """PSI of the whole machine; kernels without it give nothing. Not thread-safe."""

    name = "pressure"

    def __init__(self, clock: Clock, root: Path = Path("/proc/pressure")) -> None:
        self._clock = clock
        self._root = root
        self._rates: dict[str, CounterRate] = {}

    def read(self) -> Values:
        values: Values = {}
        for resource in RESOURCES:
            try:
                text = (self._root / resource).read_text()
            except OSError:  # an old kernel, or PSI is turned off
                continue
            now_ns = self._clock.monotonic_ns()
            for kind, total_us in _totals(text).items():
                name = f"pressure/{resource}_{kind}_ratio"
                rate = self._rates.setdefault(name, CounterRate()).update(total_us / 1e6, now_ns)
                if rate is not None:
                    values[name] = min(1.0, rate)
        return values


def _totals(text: str) -> dict[str, int]:
    totals = {}
    for line in text.splitlines():
        kind, _, total = line.partition(" ")[0], *line.rpartition("total=")[1:]
        if kind in ("some", "full") and total.isdecimal():
            totals[kind] = int(total)
    return totals
