"""Clocks: steps of the wall clock, and times in which the machine was suspended.

In: the wall clock, the monotonic clock, and one that also counts while suspended.
Out: `clock/suspended_seconds_total` and `clock/wall_steps_total`, and a message for each.
Never: takes the small corrections of NTP for a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from shared.clock import Clock
from telemetry.hardware.probe import Report, Values

NOTICED_NS: Final = 500_000_000
"""Difference of two clocks between two readings from which on it is a step or a suspension."""


def boottime_ns() -> int:
    """Return the time since the machine was started, with the time it was suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class ClockProbe:
    """Compares the clocks of this machine at each reading. Not thread-safe."""

    name = "clocks"

    def __init__(
        self, clock: Clock, report: Report, boottime: Callable[[], int] = boottime_ns
    ) -> None:
        self._clock = clock
        self._report = report
        self._boottime = boottime
        self._last: tuple[int, int, int] | None = None
        self._suspended_s = 0.0
        self._steps = 0

    def read(self) -> Values:
        now = self._clock.monotonic_ns(), self._boottime(), self._clock.wall_ns()
        last, self._last = self._last, now
        if last is not None:
            mono_ns, boot_ns, wall_ns = (a - b for a, b in zip(now, last, strict=True))
            self._see_suspension(boot_ns - mono_ns)
            # Against the clock that counts while suspended: the wall clock does so too.
            self._see_step(wall_ns - boot_ns)
        return {
            "clock/suspended_seconds_total": self._suspended_s,
            "clock/wall_steps_total": self._steps,
        }

    def _see_suspension(self, missed_ns: int) -> None:
        if missed_ns >= NOTICED_NS:
            self._suspended_s += missed_ns / 1e9
            self._report("info", f"this machine was suspended for {missed_ns / 1e9:.1f} s")

    def _see_step(self, step_ns: int) -> None:
        if abs(step_ns) >= NOTICED_NS:
            self._steps += 1
            self._report("info", f"the wall clock was set by {step_ns / 1e9:+.1f} s")
