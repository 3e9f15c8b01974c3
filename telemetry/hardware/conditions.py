"""Conditions: something is wrong from an onset to an end, and both are said as events.

In: what a reading shows, each time it is read.
Out: one `AlertChanged` at the onset, one at the end.
Never: a word for every reading, or an end because nothing could be read.

There are two kinds. A *state* can be read at any time (a GPU is throttled): it must last
`onset_s` to count, and be gone for `end_s` to be over, so that one at its border does not
come and go each second. A *pulse* happens at a moment (an XID): it is over when `quiet_s`
have passed without another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shared.clock import Clock
from shared.events import AlertChanged, Event, Scalar

log = logging.getLogger(__name__)

LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING}

Key = tuple[str, str]


@dataclass
class _Condition:
    """A condition that is present, or was a moment ago. since_ns: of the current stretch."""

    since_ns: int
    seen_ns: int
    text: str = ""
    severity: str = "warning"
    value: Scalar | None = None
    is_said: bool = False
    quiet_s: float = 0.0


class Conditions:
    """The conditions of one host that one thread watches. Not thread-safe.

    emit: takes an event, and must not wait.
    """

    def __init__(self, host: str, emit: Callable[[Event], object], clock: Clock) -> None:
        self._host = host
        self._emit = emit
        self._clock = clock
        self._known: dict[Key, _Condition] = {}

    def state(
        self,
        name: str,
        subject: str,
        is_present: bool,
        text: str = "",
        *,
        severity: str = "warning",
        value: Scalar | None = None,
        onset_s: float = 0.0,
        end_s: float = 0.0,
    ) -> bool:
        """Note a reading of a condition that can be read at any time; return True if it is over.

        Do not call this where nothing could be read: the condition stays as it was.
        """
        now_ns = self._clock.monotonic_ns()
        key = name, subject
        known = self._known.get(key)
        if is_present:
            if known is None:
                known = self._known[key] = _Condition(now_ns, now_ns)
            known.seen_ns = now_ns
            self._learn(key, known, text, severity, value)
            if not known.is_said and now_ns - known.since_ns >= onset_s * 1e9:
                self._begin(key, known)
        elif known is not None and (not known.is_said or now_ns - known.seen_ns >= end_s * 1e9):
            self._end(key, known)
        return key not in self._known

    def pulse(
        self,
        name: str,
        subject: str,
        text: str,
        *,
        quiet_s: float,
        severity: str = "warning",
        value: Scalar | None = None,
    ) -> None:
        """Note that something happened; the condition ends `quiet_s` after the last time."""
        now_ns = self._clock.monotonic_ns()
        key = name, subject
        known = self._known.setdefault(key, _Condition(now_ns, now_ns))
        known.seen_ns, known.quiet_s = now_ns, quiet_s
        self._learn(key, known, text, severity, value)
        if not known.is_said:
            self._begin(key, known)

    def expire(self) -> None:
        """End the pulses that were quiet for long enough. To be called with each reading."""
        now_ns = self._clock.monotonic_ns()
        for key, known in list(self._known.items()):
            if known.quiet_s and now_ns - known.seen_ns >= known.quiet_s * 1e9:
                self._end(key, known)

    def _learn(
        self, key: Key, known: _Condition, text: str, severity: str, value: Scalar | None
    ) -> None:
        """Take over what a reading says; a new text of a condition that was said is said too."""
        is_new = (known.text, known.severity) != (text, severity)
        known.text, known.severity, known.value = text, severity, value
        if known.is_said and is_new:
            self._begin(key, known)

    def _begin(self, key: Key, known: _Condition) -> None:
        known.is_said = True
        text = f"{self._host}: {known.text}"
        log.log(LEVELS.get(known.severity, logging.ERROR), "%s", text)
        self._emit(
            AlertChanged(
                name=key[0],
                subject=key[1],
                severity=known.severity,
                text=text,
                value=known.value,
            )
        )

    def _end(self, key: Key, known: _Condition) -> None:
        del self._known[key]
        if not known.is_said:
            return
        lasted_s = (self._clock.monotonic_ns() - known.since_ns) / 1e9
        text = f"{self._host}: over after {lasted_s:.0f} s: {known.text}"
        log.info("%s", text)
        self._emit(
            AlertChanged(
                name=key[0],
                subject=key[1],
                is_active=False,
                severity=known.severity,
                text=text,
                value=known.value,
                lasted_s=lasted_s,
            )
        )
