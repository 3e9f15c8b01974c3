"""Placement: chooses the subdirectory for each value of a session.

In: the tags, steps and values of one session, in order.
Out: for each value a level (the session's first subdirectory, its second, ...), or none.
Never: changes a step, or knows of files.

TensorBoard's fast loader shows a tag in a subdirectory as one curve: of equal
steps it shows the last, and a lower step wipes the higher ones (both measured).
So a value goes to the first level whose last step of that tag is not above its
own step; if there is none, to a new level. Two rules follow:

    the same value again at a level's last step    is not written
    a changed value at a level's last step         is written there, and is the one shown

The last steps of a tag fall from level to level, so the first that fits has the
highest last step. Levels and tags are bounded; values beyond them are counted.

A value is remembered as a number, or as a text that begins with its kind. A text
is written only if it differs from the last one, whatever its step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from itertools import repeat
from typing import Final, NamedTuple

import msgspec

from telemetry.sinks.tensorboard.bounds import BOUNDS, Bounds

NO_STEP: Final = -(2**63)
TEXT: Final = "text:"

Value = float | str
Last = tuple[int, Value]


class LevelState(msgspec.Struct, array_like=True):
    """State of a level without its tags.

    highest: the highest last step of the numbers remembered. floor: the highest last
    step of all tags that were forgotten.
    """

    highest: int = NO_STEP
    floor: int = NO_STEP


class LeftOut(msgspec.Struct):
    """Counts of values left out: beyond the limits on levels and tags."""

    levels: int = 0
    tags: int = 0

    @property
    def total(self) -> int:
        return self.levels + self.tags


class Change(NamedTuple):
    """A change of a level: it forgot its tags, or these tags have a new last step and value."""

    level: int
    is_cleared: bool
    lasts: dict[str, Last]


class _Level:
    """The last step and value of each tag in one subdirectory."""

    __slots__ = ("changed", "is_cleared", "lasts", "state")

    def __init__(self, state: LevelState) -> None:
        self.state = state
        self.lasts: dict[str, Last] = {}
        self.changed: dict[str, None] = {}
        self.is_cleared = False

    def clear(self) -> None:
        steps = [step for step, _ in self.lasts.values()]
        self.state.floor = max([self.state.floor, *steps])
        self.lasts, self.changed, self.is_cleared = {}, {}, True


class Placement:
    """Levels of one session, and the last step of each tag in them. Not thread-safe."""

    def __init__(
        self, levels: list[LevelState], left_out: LeftOut, bounds: Bounds = BOUNDS
    ) -> None:
        self._bounds = bounds
        self._levels = [_Level(state) for state in levels or [LevelState()]]
        self._left_out = left_out
        self.tags = 0
        """Number of tags that are remembered, over all levels."""

    @property
    def levels(self) -> list[LevelState]:
        return [level.state for level in self._levels]

    def numbers(
        self, step: int, values: dict[str, float], *, is_sampled: bool = False
    ) -> Mapping[int, dict[str, float]]:
        """Place the numbers of one step; return those to write, by level.

        is_sampled: the numbers are readings, which are written even if they repeat.
        """
        first = self._levels[0]
        if step > first.state.highest and len(first.lasts) + len(values) <= self._bounds.tags:
            # Fast path for most rows: the step is above that of every tag.
            before = len(first.lasts)
            first.lasts.update(zip(values, zip(repeat(step), values.values())))  # noqa: B905
            self.tags += len(first.lasts) - before
            first.changed.update(dict.fromkeys(values))
            first.state.highest = step
            return {0: values}
        placed: dict[int, dict[str, float]] = {}
        for tag, value in values.items():
            level = self._place(tag, step, value, is_sampled)
            if level is not None:
                placed.setdefault(level, {})[tag] = value
                state = self._levels[level].state
                state.highest = max(state.highest, step)
        return placed

    def other(self, tag: str, step: int, value: str) -> int | None:
        """Place a text or a histogram; return its level, or None if it must not be written."""
        return self._place(tag, step, value)

    def rises(self, tag: str, step: int) -> bool:
        """True if a step is above the last one of the tag in the first level."""
        first = self._levels[0]
        last = first.lasts.get(tag)
        return step > (first.state.floor if last is None else last[0])

    def note(self, tag: str, value: str) -> bool:
        """Remember a tag of the first level whose steps always rise, such as a message's.

        Returns False if there is no room for another tag.
        """
        first = self._levels[0]
        if tag not in first.lasts:
            if len(first.lasts) >= self._bounds.tags:
                self._left_out.tags += 1
                return False
            self._remember(first, tag, NO_STEP, value)
        return True

    def kinds(self) -> dict[str, str]:
        """Return the kind of each tag that holds no numbers."""
        return {
            tag: value.partition(":")[0]
            for level in reversed(self._levels)
            for tag, (_, value) in level.lasts.items()
            if isinstance(value, str)
        }

    def last_of(self, tag: str) -> Last | None:
        """Return the last step and value of a tag in the first level, if it is remembered."""
        return self._levels[0].lasts.get(tag)

    def fold(self) -> None:
        """Forget all tags of all levels; a level then has one floor for every tag."""
        for level in self._levels:
            level.clear()
        self.tags = 0

    def take_changes(self) -> list[Change]:
        """Return the changes since the last call."""
        changes = []
        for number, level in enumerate(self._levels):
            if level.changed or level.is_cleared:
                lasts = {tag: level.lasts[tag] for tag in level.changed}
                changes.append(Change(number, level.is_cleared, lasts))
                level.changed, level.is_cleared = {}, False
        return changes

    def everything(self) -> list[Change]:
        """Return all that is remembered, as changes to an empty placement."""
        return [
            Change(number, True, level.lasts)
            for number, level in enumerate(self._levels)
            if level.lasts
        ]

    def restore(self, change: Change) -> None:
        """Apply a change that an earlier process stored.

        Raises:
            ValueError: it is about a level that does not exist.
        """
        if not 0 <= change.level < len(self._levels):
            raise ValueError(f"there is no level {change.level}")
        level = self._levels[change.level]
        if change.is_cleared:
            self.tags -= len(level.lasts)
            level.lasts = {}
        before = len(level.lasts)
        level.lasts.update(change.lasts)
        self.tags += len(level.lasts) - before

    def _place(self, tag: str, step: int, value: Value, is_sampled: bool = False) -> int | None:
        for number, level in enumerate(self._levels):
            last = level.lasts.get(tag)
            if step < (level.state.floor if last is None else last[0]):
                continue
            if last is not None and not is_sampled and _is_told(last, step, value):
                return None
            if last is None and len(level.lasts) >= self._bounds.tags:
                self._left_out.tags += 1
                return None
            self._remember(level, tag, step, value)
            return number
        if len(self._levels) >= self._bounds.levels:
            self._left_out.levels += 1
            return None
        self._levels.append(_Level(LevelState()))
        self._remember(self._levels[-1], tag, step, value)
        return len(self._levels) - 1

    def _remember(self, level: _Level, tag: str, step: int, value: Value) -> None:
        self.tags += tag not in level.lasts
        level.lasts[tag] = (step, value)
        level.changed[tag] = None


def _is_told(last: Last, step: int, value: Value) -> bool:
    """True if the level shows this value already: a text at any step, others at this step."""
    last_step, last_value = last
    if isinstance(value, str):
        is_lasting = value.startswith(TEXT)
        return last_value == value and (is_lasting or last_step == step)
    return last_step == step and isinstance(last_value, float) and _is_same(last_value, value)


def _is_same(one: float, other: float) -> bool:
    """True if both numbers are equal as 32-bit floats, as event files hold them; NaN equals NaN."""
    a, b = ctypes.c_float(one).value, ctypes.c_float(other).value
    return a == b or (a != a and b != b)
