"""Backlog: packed events without a sequence number yet, dropped by rank when they are too many.

In: packed events with their kinds.
Out: the events of the next frame.
Never: gives up anything uncounted. What was dropped or refused becomes one
Gap event for each reason, in the place of the first one missing.

Not thread-safe: the sender thread owns it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from shared.clock import Clock
from shared.events import (
    CUSTOM,
    HARDWARE,
    QUANT,
    TRAIN,
    VAL,
    Gap,
    RunFinished,
    RunStarted,
    encode_event,
)
from shared.wire import FRAME_MAX_EVENTS, FRAME_TARGET_BYTES

DROPPED_FIRST: Final = (TRAIN, HARDWARE, CUSTOM, QUANT)
"""Kinds that are dropped first, the oldest event of them before newer ones."""

DROPPED_NEVER: Final = (RunStarted.TAG, RunFinished.TAG, Gap.TAG)
"""Kinds that are kept even when the backlog is over its bound."""
QUEUE_FULL: Final = "queue full"
"""Reason for which events are dropped that memory has no room for, here and in the queue."""
SHED_TO: Final = 0.9
"""Shed a tenth at a time, so that a full backlog is not walked for each event."""

_ITEM_OVERHEAD_BYTES: Final = 120


def refusal(reason: str) -> str:
    """Return the reason that a Gap event gives for events refused for this reason."""
    return f"refused: {reason}"


class _Missing(NamedTuple):
    """A hole in the backlog that will be one Gap event."""

    reason: str
    by_kind: Counter[str]
    wall_ns: int
    mono_ns: int


class _Item(NamedTuple):
    kind: str
    packed: bytes
    missing: _Missing | None = None

    @property
    def cost(self) -> int:
        return len(self.packed) + _ITEM_OVERHEAD_BYTES


class Backlog:
    """Packed events in order, at most max_bytes of them."""

    def __init__(self, max_bytes: int, clock: Clock) -> None:
        self.max_bytes = max_bytes
        self.dropped_events = 0
        self._clock = clock
        self._items: deque[_Item] = deque()
        self._bytes = 0
        self._holes: dict[str, _Missing] = {}
        self.gaps = 0
        """Gap events that this backlog has made, or will make."""

    def __len__(self) -> int:
        return len(self._items)

    @property
    def held_bytes(self) -> int:
        """Memory that the events in the backlog take, in bytes."""
        return self._bytes

    def add(self, kind: str, packed: bytes) -> None:
        """Add an event at the end; drop other events if the backlog is then over its bound."""
        self._items.append(_Item(kind, packed))
        self._bytes += len(packed) + _ITEM_OVERHEAD_BYTES
        if self._bytes > self.max_bytes:
            self._shed()

    def add_missing(self, reason: str, kinds: Iterable[str] | Mapping[str, int]) -> None:
        """Record at the end of the backlog that events of these kinds are missing, and why."""
        by_kind = Counter(kinds)
        if by_kind:
            self._hole(reason).by_kind.update(by_kind)

    def take_frame(self) -> list[bytes]:
        """Remove and return the events of one frame; empty if the backlog is empty."""
        events: list[bytes] = []
        size = 0
        while self._items and len(events) < FRAME_MAX_EVENTS:
            item = self._items[0]
            packed = item.packed if item.missing is None else _gap(item.missing)
            if events and size + len(packed) > FRAME_TARGET_BYTES:
                break
            self._items.popleft()
            self._bytes -= item.cost
            if item.missing is not None:
                del self._holes[item.missing.reason]
            events.append(packed)
            size += len(packed)
        return events

    def _push(self, item: _Item) -> None:
        self._items.append(item)
        self._bytes += item.cost

    def _hole(self, reason: str) -> _Missing:
        """Return the gap for this reason that is in the backlog, or append a new one."""
        missing = self._holes.get(reason)
        if missing is None:
            now = self._clock.wall_ns(), self._clock.monotonic_ns()
            missing = self._holes[reason] = _Missing(reason, Counter(), *now)
            self.gaps += 1
            self._push(_Item(Gap.TAG, b"", missing))
        return missing

    def _shed(self) -> None:
        """Drop the least important events: training rows first, then validation, then the rest."""
        target = int(self.max_bytes * SHED_TO)
        self._drop(target, lambda kind: kind in DROPPED_FIRST)
        if self._bytes > self.max_bytes:
            self._drop(target, lambda kind: kind == VAL)
        if self._bytes > self.max_bytes:
            self._drop(target, lambda kind: kind not in DROPPED_NEVER)

    def _drop(self, target: int, may_drop: Callable[[str], bool]) -> None:
        """Drop the oldest droppable events until target bytes are left."""
        items, left = self._items, self._bytes
        self._items, self._bytes = deque(), 0
        # The Gap event has to stand where the first missing event was. If the backlog
        # already has one for this reason further back, it moves to that place.
        missing, is_placed = self._holes.get(QUEUE_FULL), False
        for item in items:
            if left > target and may_drop(item.kind):
                left -= item.cost
                self.dropped_events += 1
                if missing is None:
                    missing = self._hole(QUEUE_FULL)
                elif not is_placed:
                    self._push(_Item(Gap.TAG, b"", missing))
                is_placed = True
                missing.by_kind[item.kind] += 1
            elif item.missing is None or item.missing is not missing:
                self._push(item)
            elif not is_placed:
                self._push(item)
                is_placed = True


def _gap(missing: _Missing) -> bytes:
    gap = Gap(count=missing.by_kind.total(), by_kind=dict(missing.by_kind), reason=missing.reason)
    return encode_event(gap, missing.wall_ns, missing.mono_ns)
