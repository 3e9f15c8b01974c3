"""Verdicts: the word of a rule on one condition now, and the time that it must hold to count.

In: verdicts, once a second, and the time.
Out: the conditions that are active, and those that are known to be over.
Never: flickers: an end has to last CLEAR_S, and the next onset comes REST_S after it at the
earliest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from shared.events import Scalar

HOST: Final = ""
"""Scope of a condition of this machine, which concerns every run on it."""
CLEAR_S: Final = 10.0
REST_S: Final = 60.0
CONDITIONS_MAX: Final = 4_096
SUBJECTS_MAX: Final = 64
"""Subjects that one rule may have in one scope at a time."""


class Key(NamedTuple):
    """The identity of a condition: its run or HOST, its rule, and the part that has it."""

    scope: str
    name: str
    subject: str


class Verdict(NamedTuple):
    """The word of a rule on one condition now. Without evidence a rule gives no verdict.

    for_s: the condition counts when it was so for this long.
    """

    key: Key
    is_bad: bool
    text: str = ""
    value: Scalar | None = None
    severity: str = "warning"
    for_s: float = 0.0


@dataclass
class _State:
    is_active: bool
    since_ns: int
    """When the verdicts began to differ from is_active; 0 while they agree."""
    changed_ns: int | None = None
    lasted_s: float | None = None
    """Time from the last onset to its end; None where an earlier sidecar saw that onset."""
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Active:
    """A condition that is active, with the verdict that began it."""

    verdict: Verdict
    began_ns: int | None
    """Monotonic time of the onset; None where an earlier sidecar saw it."""


class Conditions:
    """All conditions and their states. Not thread-safe: the watching thread owns it."""

    def __init__(self, conditions_max: int = CONDITIONS_MAX) -> None:
        self._conditions_max = conditions_max
        self._states: dict[Key, _State] = {}

    def take(self, verdicts: Iterable[Verdict], standing: frozenset[Key], now_ns: int) -> None:
        """Take in the verdicts of now. standing: conditions that are open in journals."""
        for verdict in verdicts:
            key = verdict.key
            state = self._states.get(key)
            if state is None:
                # A condition that an earlier sidecar recorded goes on until it is seen to be over.
                if len(self._states) >= self._conditions_max or self._is_crowded(key):
                    continue
                state = self._states[key] = _State(key in standing, 0)
                state.verdict = verdict
            self._update(state, verdict, now_ns)

    def active(self) -> dict[Key, Active]:
        """Return the active conditions."""
        return {
            key: Active(state.verdict, state.changed_ns)
            for key, state in self._states.items()
            if state.is_active and state.verdict is not None
        }

    def over(self) -> dict[Key, float | None]:
        """Return the conditions that are known not to be active, with how long they were, in s.

        None where the onset was seen by an earlier sidecar, or there was none.
        """
        return {key: s.lasted_s for key, s in self._states.items() if not s.is_active}

    def forget(self, scopes: frozenset[str]) -> None:
        """Forget the conditions of all runs but these; those of the machine stay."""
        kept = scopes | {HOST}
        self._states = {key: s for key, s in self._states.items() if key.scope in kept}

    def _is_crowded(self, key: Key) -> bool:
        same = sum(k.scope == key.scope and k.name == key.name for k in self._states)
        return same >= SUBJECTS_MAX

    def _update(self, state: _State, verdict: Verdict, now_ns: int) -> None:
        if verdict.is_bad == state.is_active:
            state.since_ns = 0
            return
        state.since_ns = state.since_ns or now_ns
        wait_s = verdict.for_s if verdict.is_bad else CLEAR_S
        is_rested = state.changed_ns is None or now_ns - state.changed_ns >= REST_S * 1e9
        if now_ns - state.since_ns < wait_s * 1e9 or (verdict.is_bad and not is_rested):
            return
        if state.is_active:
            onset_ns = state.changed_ns
            state.lasted_s = None if onset_ns is None else (now_ns - onset_ns) / 1e9
        state.is_active, state.since_ns, state.changed_ns = verdict.is_bad, 0, now_ns
        state.verdict = verdict
