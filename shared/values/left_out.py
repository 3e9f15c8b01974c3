"""Left out: names of the parts of an event that can't be recorded.

In: names and reasons, while an event is packed.
Out: the event's left_out and left_out_count, and one piece of advice for each reason.
"""

from __future__ import annotations

from typing import Any

from shared.events import LEFT_OUT_MAX
from shared.text import clean
from shared.values.frozen import marked
from shared.values.scalars import Odd

_NAME_CHARS = 120


class LeftOuts:
    """The parts of one event that are left out. Not thread-safe."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.count = 0
        self.advice: dict[str, str] = {}
        """For each reason, a sentence about the first part that was left out for it."""

    def add(self, name: str, why: Odd) -> None:
        """Note that the value of this name is not recorded."""
        self.count += 1
        shown = shown_name(name)
        if why.reason not in self.advice:
            self.advice[why.reason] = f"{shown!r}: {why.advice}"
        if len(self.names) < LEFT_OUT_MAX:
            self.names[shown] = clean(why.reason, 100)

    def merge(self, names: dict[str, str], count: int) -> None:
        """Add parts that the producer itself reported as left out."""
        self.count += count
        for name, reason in names.items():
            if len(self.names) < LEFT_OUT_MAX:
                self.names[shown_name(name)] = clean(reason, 100)

    def fields(self) -> dict[str, Any]:
        """Return the fields for the body of the event; empty if nothing is left out."""
        if not self.count:
            return {}
        return {"left_out": self.names, "left_out_count": self.count}


def shown_name(name: str) -> str:
    """Return a name that is safe to print; a changed one ends in a hash of the original."""
    shown = clean(name, _NAME_CHARS)
    return shown if shown == name else marked(shown, name)
