"""Grace: the time that a shutdown has left, and its steps in the log.

Not thread-safe.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shared.clock import Clock

log = logging.getLogger("telemetry.service")

SHOWN_S: Final = 1.0
"""A step that takes longer is shown: it is what a shutdown waited for."""


class Grace:
    """The grace time of one shutdown, which begins now."""

    def __init__(self, clock: Clock, grace_s: float) -> None:
        self._clock, self._grace_s = clock, grace_s
        self._began_ns = clock.monotonic_ns()

    @property
    def spent_s(self) -> float:
        return (self._clock.monotonic_ns() - self._began_ns) / 1e9

    def left_s(self, share: float = 1.0) -> float:
        """Return the time left of a share of the grace time, 0 if it is over."""
        return max(0.0, self._grace_s * share - self.spent_s)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Log one step of the shutdown: as information if it took long, else for debugging."""
        began_s = self.spent_s
        yield
        took_s = self.spent_s - began_s
        level = logging.INFO if took_s > SHOWN_S else logging.DEBUG
        log.log(level, "draining: %s took %.1f s", what, took_s)
