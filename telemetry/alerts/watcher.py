"""Watcher: the thread that keeps the latest values and evaluates the rules of alerts.

In: frames from the feed, and the facts that the journal thread publishes.
Out: a copy of the latest values and the conditions of alerts, made anew in each poll.
Never: touches a journal, or keeps another thread waiting.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from shared.clock import Clock
from shared.ids import SIDECAR
from telemetry.alerts.evaluator import Evaluator
from telemetry.alerts.recording import Published, end_of, onset_of
from telemetry.alerts.rules import Rules
from telemetry.alerts.telling import Telling
from telemetry.alerts.verdicts import HOST, Conditions, Key
from telemetry.watch.facts import Situation, Unrecorded
from telemetry.watch.feed import Feed
from telemetry.watch.latest import Latest

log = logging.getLogger("telemetry.alerts.watcher")

POLL_S: Final = 1.0


class Watcher:
    """Owns the latest values and the conditions.

    `latest`, `published` and `counts` may be read from any thread: each poll makes new ones.
    """

    def __init__(
        self,
        feed: Feed,
        situation: Callable[[], Situation],
        clock: Clock,
        rules: Rules,
        telling: Telling,
    ) -> None:
        self.latest = Latest()
        """A copy, as of the last poll."""
        self.published = Published()
        """The conditions of alerts, for the journal thread to record."""
        self.counts: dict[str, int] = {}
        """Onsets of alerts, by name."""
        self.failures = 0
        self._feed = feed
        self._situation = situation
        self._clock = clock
        self._evaluator = Evaluator(rules)
        self._telling = telling
        self._conditions = Conditions()
        self._values = Latest()
        self.unrecorded: tuple[Unrecorded, ...] = ()
        """Conditions that were told and that no journal has: a new one in each poll."""
        self.not_recorded = 0
        """Conditions that were over before a journal could have them."""
        self._unrecorded: set[Key] = set()
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread. May be called twice, and without a start."""
        is_first = not self._is_ending.is_set()
        self._is_ending.set()
        if self._thread.ident is not None:
            self._thread.join()
            if is_first:
                # What the last rows of the runs said: a trainer's death, above all.
                self._guarded_poll()

    def poll(self) -> None:
        """Take in what came since the last poll, and publish."""
        now_ns = self._clock.monotonic_ns()
        situation = self._situation()
        live = frozenset(run.run_id for run in situation.runs if not run.is_ended)
        # 1. Values first: the rules look at them.
        frames, alerts = self._feed.take()
        self._values.take(frames, now_ns)
        self._values.keep_only(live, now_ns)
        self.latest = self._values.copy()
        # 2. The rules, with what an earlier sidecar recorded as still open.
        self._evaluator.see(frames, now_ns)
        verdicts = self._evaluator.verdicts(situation, self.latest, now_ns)
        self._conditions.forget(live)
        standing = _standing(situation)
        self._conditions.take(verdicts, standing, now_ns)
        self.published = Published(self._conditions.active(), self._conditions.over())
        # 3. Tell what was journaled, and what can't be: without room, or without a run.
        for alert in alerts:
            self._telling.take(alert)
        self._note_recorded(standing)
        has_run = any(run.is_started and not run.is_ended for run in situation.runs)
        if not has_run or not situation.is_writable:
            self._tell_unrecorded(standing, is_full=has_run)
        self.unrecorded = tuple(
            Unrecorded(*key, self.published.active[key].verdict.severity)
            for key in sorted(self._unrecorded)
        )
        self.counts = dict(self._telling.counts)

    def _note_recorded(self, standing: frozenset[Key]) -> None:
        """Forget what a run has now; tell the end of what was over before any could have it."""
        for key in sorted(self._unrecorded):
            if key in standing:
                self._unrecorded.discard(key)
            elif key not in self.published.active:
                self._unrecorded.discard(key)
                self.not_recorded += 1
                event = end_of(key.name, key.subject, self.published.over.get(key))
                self._telling.tell(key.scope, SIDECAR, event)

    def _tell_unrecorded(self, standing: frozenset[Key], *, is_full: bool) -> None:
        """Tell the conditions that are in no journal; those of a run only where it has no room."""
        for key, found in self.published.active.items():
            is_told = key.scope == HOST or is_full
            if is_told and key not in standing and key not in self._unrecorded:
                self._unrecorded.add(key)
                self._telling.tell(key.scope, SIDECAR, onset_of(key, found))

    def _run(self) -> None:
        while not self._is_ending.wait(POLL_S):
            self._guarded_poll()

    def _guarded_poll(self) -> None:
        try:
            self.poll()
        except Exception:
            self.failures += 1
            if self.failures == 1:
                log.exception("the watcher failed; it goes on")


def _standing(situation: Situation) -> frozenset[Key]:
    """Return the conditions that a sidecar has recorded as begun, in the scopes they may have."""
    return frozenset(
        Key(scope, str(alert.get("name")), str(alert.get("subject")))
        for run in situation.runs
        for alert in run.alerts
        if alert.get("source") == SIDECAR
        for scope in (run.run_id, HOST)
    )
