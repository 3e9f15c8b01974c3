"""Event queue: the bounded way from the threads that emit to the sender thread.

In: events as a script made them, from any thread.
Out: copies of them in order, with their times, for the sender thread.
Never: raises, waits for I/O, calls a method of a value of an unknown type, or gives up an
event uncounted. The place of events that were given up is marked, so that a Gap event
comes to stand there.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from shared.clock import Clock
from shared.emitter.backlog import DROPPED_FIRST, DROPPED_NEVER, QUEUE_FULL, refusal
from shared.emitter.packing import kind_of
from shared.events import Event, HistogramLogged, MetricsLogged
from shared.values.frozen import CONFIG_BUDGET, ROW_BUDGET, Freezer
from shared.values.histograms import held_numbers
from shared.values.rows import VALUE_COST_BYTES, held_row

NOT_AN_EVENT: Final = "not an event"
"""Reason of a refusal: the value is no event, or its values have no names."""

EVENT_COST_BYTES: Final = 400
"""Memory of an event beside its values. Measured: a row of 12 floats takes 1,080 bytes in all."""

RESERVED_SHARE: Final = 1 / 32
"""Share of the memory that the kinds in DROPPED_FIRST may not fill."""
BEYOND_BYTES: Final = 1024 * 1024
"""Bytes that the kinds in DROPPED_NEVER may take beyond the bound."""
YIELD_SHARE: Final = 0.5
"""If the queue is filled above this share, put() yields to the sender thread: for at most
the interpreter's switch interval (5 ms), and never for I/O."""
YIELD_EVERY: Final = 64
"""Above YIELD_SHARE, put() yields once in so many queued events."""
YIELD_ALWAYS_SHARE: Final = 0.9
"""Above this share, put() yields for each event."""
FULL_WAIT_S: Final = 0.001
FULL_WAITS_MAX: Final = 4
"""Where the queue is full, put() gives the sender thread so many such times before an event is
given up, and twice as many while it takes events: on a busy machine it may have to wait for a
processor. One that has taken nothing since, as at a disk that stands still, is not waited for
again."""

_CONFIGS: Final = frozenset({"config", "summary"})

Queued = tuple[int, int, Event | None, int]
"""Item of the queue: wall_ns, mono_ns, the event and its cost in bytes. An event of None
marks the place of events that were given up: see `take_missing`."""


class EventQueue:
    """A queue of events, bounded by the memory that they take.

    `put`, `refuse` and `close` may be called by any thread, `take`, `take_missing` and
    `settle` by the sender thread. The counters are read by both.
    """

    def __init__(self, max_bytes: int, clock: Clock) -> None:
        self.dropped: Counter[str] = Counter()
        """Number of events for which there was no room, by reason."""
        self.refused: Counter[str] = Counter()
        """Number of values that are no events, by reason."""
        self.taken = 0
        """Number of events that the sender thread has taken out."""
        self._wall_ns, self._mono_ns = clock.wall_ns, clock.monotonic_ns
        self._items: deque[Queued] = deque()
        self._is_closed = False
        self._reserved_bytes = int(max_bytes * RESERVED_SHARE)
        # Their difference is the memory that the queue takes. The emitting threads write
        # the first, the sender thread the second. No lock is held: an update that is lost
        # to a race is corrected when the queue is empty.
        self._cost_in = 0
        self._cost_out = 0
        self._cost_taken = 0
        """Cost of the events taken since the last `settle`; they still count as queued."""
        self._room = max_bytes
        self._ample = int(max_bytes * YIELD_SHARE)
        """Bytes up to which an event is queued without a second look; -1 after close."""
        # Held for an increment, never across I/O. Re-entrant: a signal handler may emit.
        self._lock = threading.RLock()
        self._waited_for = -1
        """Value of `taken` when put() last waited for the sender thread."""
        self._missing: dict[str, Counter[str]] = {}
        """Counts by kind, for each reason, of events given up that no Gap event reports yet."""

    def __len__(self) -> int:
        # While something is missing, one item may be the mark of its place.
        return max(0, len(self._items) - bool(self._missing))

    def __bool__(self) -> bool:
        """True if there is anything to take, be it only the mark of events given up."""
        return bool(self._items)

    @property
    def emitted(self) -> int:
        """Number of events so far: taken, waiting, dropped or refused here."""
        return self.taken + len(self) + _total(self.dropped) + _total(self.refused)

    def put(self, event: Any) -> None:
        """Copy an event and queue it with the current times; count it if that can't be done."""
        try:
            if type(event) is MetricsLogged and not event.left_out:
                # The way of nearly all events: one copy of the values, all else is cheap.
                values, cost = held_row(event.values)
                cost += EVENT_COST_BYTES + VALUE_COST_BYTES * len(values)
                event = MetricsLogged(kind=event.kind, step=event.step, values=values)
            else:
                event, cost = held_event(event)
            queued = self._cost_in - self._cost_out + cost
            if queued > self._ample and not self._has_room(event, queued, cost):
                self._drop(kind_of(event))
                return
            self._cost_in += cost
            self._items.append((self._wall_ns(), self._mono_ns(), event, cost))
        except Exception:
            # Training must not be disturbed, whatever it gave us.
            self.refuse()

    def refuse(self) -> None:
        """Count a value that is no event, or that no thread can take."""
        with self._lock:
            self.refused[NOT_AN_EVENT] += 1
            self._note_missing(refusal(NOT_AN_EVENT), "unknown")

    def close(self) -> None:
        """Drop, from now on, every event that is put. May be called twice."""
        with self._lock:
            self._is_closed = True
            self._ample = -1

    def take(self, most: int) -> Iterator[Queued]:
        """Take items out, at most so many; their memory counts until `settle`."""
        for _ in range(min(most, len(self._items))):
            item = self._items.popleft()
            self._cost_taken += item[3]
            if item[2] is not None:
                self.taken += 1
            yield item

    def take_missing(self) -> dict[str, Counter[str]]:
        """Return the counts of events given up, by reason and kind, and forget them."""
        with self._lock:
            taken, self._missing = self._missing, {}
        return taken

    def settle(self, room: int) -> None:
        """Set the bytes that the queue may take; events taken out no longer count as its own."""
        # The room first: the two together are never above the bound.
        with self._lock:
            self._room = room
            self._ample = -1 if self._is_closed else int(room * YIELD_SHARE)
        self._cost_out += self._cost_taken
        self._cost_taken = 0
        if not self._items:
            self._cost_out = self._cost_in

    def _has_room(self, event: Event, queued: int, cost: int) -> bool:
        """True if an event may still be queued although the queue is more than half full."""
        if self._is_closed:
            return False
        if len(self._items) % YIELD_EVERY == 0 or queued > self._room * YIELD_ALWAYS_SHARE:
            time.sleep(0)
            queued = self._cost_in - self._cost_out + cost
        kind = kind_of(event)
        beyond = BEYOND_BYTES if kind in DROPPED_NEVER else 0
        if kind in DROPPED_FIRST:
            beyond = -self._reserved_bytes
        if queued > self._room + beyond and self._waited_for != self.taken:
            self._waited_for = self.taken
            queued = self._waited(self._room + beyond, cost)
        return queued <= self._room + beyond

    def _waited(self, room: int, cost: int) -> int:
        """Wait a little for the sender thread; return the bytes queued then, with cost."""
        before = self.taken
        for waits in range(1, 2 * FULL_WAITS_MAX + 1):
            time.sleep(FULL_WAIT_S)
            queued = self._cost_in - self._cost_out + cost
            if queued <= room or (waits >= FULL_WAITS_MAX and self.taken == before):
                break
        return queued

    def _drop(self, kind: str) -> None:
        with self._lock:
            self.dropped[QUEUE_FULL] += 1
            self._note_missing(QUEUE_FULL, kind)

    def _note_missing(self, reason: str, kind: str) -> None:
        """Record an event given up, and mark its place. After close nothing would report it."""
        if self._is_closed:
            return
        if not self._missing:
            self._items.append((0, 0, None, 0))
        self._missing.setdefault(reason, Counter())[kind] += 1


def held_event(event: Any) -> tuple[Event, int]:
    """Return a copy of an event that the caller can't change, and its cost in bytes.

    Raises:
        TypeError: the value is not an event.
    """
    kind = type(event)
    if not issubclass(kind, Event):
        raise TypeError("not an event")
    if issubclass(kind, MetricsLogged):
        values, extra = held_row(event.values)
        step = Freezer(ROW_BUDGET).freeze(event.step)
        row = msgspec.structs.replace(event, values=values, step=step)
        return row, EVENT_COST_BYTES + VALUE_COST_BYTES * len(values) + extra
    changes, cost = _held_fields(event)
    return msgspec.structs.replace(event, **changes), cost


def _held_fields(event: Event) -> tuple[dict[str, Any], int]:
    changes: dict[str, Any] = {}
    cost = 4 * EVENT_COST_BYTES
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if issubclass(type(event), HistogramLogged) and name in ("edges", "counts"):
            changes[name] = held = held_numbers(value)
            cost += 40 * len(held)
            continue
        budget = CONFIG_BUDGET if name in _CONFIGS else ROW_BUDGET
        freezer = Freezer(budget)
        changes[name] = freezer.freeze(value)
        cost += VALUE_COST_BYTES * (budget - max(0, freezer.left))
        if type(changes[name]) is str:
            cost += 4 * len(changes[name])
    return changes, cost


def _total(counter: Counter[str]) -> int:
    # Copied in one step of the interpreter: another thread may add a key meanwhile.
    return sum(dict(counter).values())
