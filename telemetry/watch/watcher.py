"""Watcher: the thread that keeps the latest values and evaluates the rules of alerts.

In: frames from the feed, and the facts that the journal thread publishes.
Out: a copy of the latest values, made anew in each turn.
Never: touches a journal, or keeps another thread waiting.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from shared.clock import Clock
from telemetry.watch.facts import RunFacts
from telemetry.watch.feed import Feed
from telemetry.watch.latest import Latest

log = logging.getLogger("telemetry.watch.watcher")

TURN_S: Final = 1.0


class Watcher:
    """Owns the latest values. `latest` may be read from any thread."""

    def __init__(self, feed: Feed, facts: Callable[[], tuple[RunFacts, ...]], clock: Clock) -> None:
        self.latest = Latest()
        """A copy, as of the last turn; a new object in each."""
        self.failures = 0
        self._feed = feed
        self._facts = facts
        self._clock = clock
        self._values = Latest()
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread. May be called twice, and without a start."""
        self._is_ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    def turn(self) -> None:
        """Take in what came since the last turn, and publish."""
        now_ns = self._clock.monotonic_ns()
        frames, _ = self._feed.take()
        self._values.take(frames, now_ns)
        self._values.keep_only((run.run_id for run in self._facts() if not run.is_ended), now_ns)
        self.latest = self._values.copy()

    def _run(self) -> None:
        while not self._is_ending.wait(TURN_S):
            try:
                self.turn()
            except Exception:
                self.failures += 1
                if self.failures == 1:
                    log.exception("the watcher failed; it goes on")
