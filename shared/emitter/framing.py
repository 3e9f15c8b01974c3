"""Framing: the way of an event from the queue to a numbered frame.

In: events that emit() queued.
Out: numbered frames of the stream, within the memory of one emitter.
Never: numbers an event before it can be sent or has to be spooled: until then it may still
be dropped in favour of a more important one.

One bound (queue_max_bytes) holds for three things together: the queue that emit() fills,
the backlog of events without a number, and the frames in memory. Backlog and frames get
only shares of it, so that the queue always has some room.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from shared.clock import Clock
from shared.emitter.backlog import Backlog, refusal
from shared.emitter.notices import Notices
from shared.emitter.options import EmitterOptions
from shared.emitter.packing import Refused, kind_of, pack_event, packed_row
from shared.emitter.queue import NOT_AN_EVENT, EventQueue
from shared.emitter.stream import OutgoingStream
from shared.events import Event
from shared.text import clean

CHUNK_EVENTS: Final = 4096
"""Events at most taken out of the queue in one poll, before frames are sent and spooled."""
HELD_SHARE: Final = 15 / 16
"""Share of the bound that backlog and frames may take together."""
FRAMES_SHARE: Final = 0.25
PRESSED_SHARE: Final = 0.25
"""If more than this share is in memory, frames are made and spooled at once."""


class Framing:
    """The queue, the backlog and the frames of one stream. The sender thread owns it."""

    def __init__(
        self,
        queue: EventQueue,
        stream: OutgoingStream,
        options: EmitterOptions,
        clock: Clock,
        notices: Notices,
    ) -> None:
        self.queue = queue
        self.backlog = Backlog(int(options.queue_max_bytes * HELD_SHARE), clock)
        self.refused: Counter[str] = Counter()
        """Number of events of which nothing could be packed, by reason."""
        self.added = 0
        """Number of events that were not emitted: pieces of wide rows, and the emitter's own."""
        self._stream = stream
        self._options = options
        self._notices = notices
        self._waiting_since_ns: int | None = None
        """Monotonic time since which the backlog is not empty; None while it is empty."""

    @property
    def is_empty(self) -> bool:
        """True if no event waits for its number."""
        return not (self.queue or len(self.backlog))

    @property
    def is_waiting(self) -> bool:
        """True if `make_frames` left events in the backlog."""
        return self._waiting_since_ns is not None

    @property
    def is_pressed(self) -> bool:
        """True if so much is in memory that frames have to be spooled at once."""
        return self._held_bytes > self._options.queue_max_bytes * PRESSED_SHARE

    def take_queue(self) -> None:
        """Pack the events of the queue into the backlog, at most CHUNK_EVENTS of them."""
        for wall_ns, mono_ns, event, _ in self.queue.take(CHUNK_EVENTS):
            if event is None:
                self._take_missing()
            else:
                self._pack(event, wall_ns, mono_ns)
        self.share_memory()

    def add(self, event: Event, wall_ns: int, mono_ns: int) -> None:
        """Put an event of the emitter's own into the backlog."""
        self.added += 1
        self._pack(event, wall_ns, mono_ns)

    def make_frames(self, now: int, everything: bool = False) -> None:
        """Number the events of the backlog if they can be sent at once or have to be spooled.

        Until then they stay in the backlog, where they can still be dropped, and where
        ten small frames become one.
        """
        if not len(self.backlog):
            return
        since = self._waiting_since_ns = self._waiting_since_ns or now
        is_overdue = now - since >= self._options.spool_after_ns
        if not (everything or is_overdue or self._stream.can_send_now or self.is_pressed):
            return
        window = self._options.queue_max_bytes * FRAMES_SHARE
        while len(self.backlog) and (everything or self._stream.frames.memory_bytes < window):
            self._stream.add(self.backlog.take_frame(), since)
        if not len(self.backlog):
            self._waiting_since_ns = None

    def share_memory(self) -> None:
        """Set the bounds of backlog and queue to the memory that the frames leave them."""
        frames = self._stream.frames.memory_bytes
        # The backlog always keeps some room: with none, no older event could be dropped
        # in favour of a newer one.
        most = int(self._options.queue_max_bytes * HELD_SHARE)
        self.backlog.max_bytes = max(most - frames, most // 4)
        self.queue.settle(self._options.queue_max_bytes - self._held_bytes)

    @property
    def _held_bytes(self) -> int:
        return self._stream.frames.memory_bytes + self.backlog.held_bytes

    def _take_missing(self) -> None:
        """Put the events that the queue gave up into the backlog as Gap events, and warn."""
        for reason, kinds in self.queue.take_missing().items():
            self.backlog.add_missing(reason, kinds)
            if reason == refusal(NOT_AN_EVENT):
                text = "telemetry refused an event: it is not an event, or has no values"
            else:
                text = f"telemetry dropped events of run {self._stream.id.run_id}: {reason}"
            self._notices.warn(reason, text)

    def _pack(self, event: Event, wall_ns: int, mono_ns: int) -> None:
        row = packed_row(event, wall_ns, mono_ns)
        kind = kind_of(event)
        if row is not None:
            self.backlog.add(kind, row)
            return
        try:
            packed = pack_event(event, wall_ns, mono_ns, self._stream.id.run_id)
        except Refused as exc:
            self.refused[exc.reason] += 1
            self.backlog.add_missing(refusal(exc.reason), [kind])
            text = f"telemetry refused an event: {clean(str(exc), 600)}"
            self._notices.warn(exc.reason, text)
            return
        for piece in packed.pieces:
            self.backlog.add(kind, piece)
        self.added += len(packed.pieces) - 1
        for reason, advice in packed.advice.items():
            text = f"telemetry left out a value ({reason}): {clean(advice, 600)}"
            self._notices.warn(reason, text)
