"""Pace: the times at which the sender thread looks for events, and polls.

Each look at an empty queue costs some 40 us of a core. The emitting thread does not say that
it has queued something: to wake another thread would cost it more than to queue the event.
"""

from __future__ import annotations

from typing import Final

from shared.clock import Clock

QUIET_NS: Final = 250_000_000
"""Time between two polls while there is nothing to send, receive or spool."""
IDLE_NS: Final = 1_000_000_000
"""Time without an event after which the thread looks less often whether there is one."""
IDLE_PAUSE_S: Final = 0.05


class Pace:
    """Times of one sender thread, which alone uses it."""

    def __init__(self, clock: Clock, flush_interval_s: float) -> None:
        self._clock = clock
        self._flush_interval_s = flush_interval_s
        self._is_quiet = False
        self._next_poll_ns = 0
        self._busy_ns = 0

    def on_poll(self, now_ns: int, *, has_taken: bool, is_quiet: bool) -> None:
        """Note what a poll has found.

        has_taken: there was an event in the queue.
        is_quiet: nothing is left to be sent, acknowledged or spooled.
        """
        if has_taken:
            self._busy_ns = now_ns
        self._is_quiet = is_quiet
        self._next_poll_ns = now_ns + (QUIET_NS if is_quiet else 0)

    @property
    def is_due(self) -> bool:
        """True if it is time for a poll, whatever is in the queue."""
        return self._clock.monotonic_ns() >= self._next_poll_ns

    @property
    def pause_s(self) -> float:
        """Time in s to wait for a message before the queue is looked at again."""
        is_idle = self._is_quiet and self._clock.monotonic_ns() - self._busy_ns >= IDLE_NS
        return max(IDLE_PAUSE_S, self._flush_interval_s) if is_idle else self._flush_interval_s
