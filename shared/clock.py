"""Clocks: the source of time, passed in so that tests can decide how long a second is.

Never: compared across kinds; wall time may step back, monotonic time never does.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of the two times that an event carries, in nanoseconds."""

    def wall_ns(self) -> int: ...

    def monotonic_ns(self) -> int: ...


class SystemClock:
    """The machine's own clocks."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()
