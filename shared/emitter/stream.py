"""Outgoing stream: numbered frames, kept by the sender until the sidecar has them on disk.

In: frames of packed events, and the answers of the sidecar.
Out: the messages to send now.
Never: touches a socket, a clock or a file, so every interleaving can be tested.

Not thread-safe: the sender thread owns it.

    CLOSED --hello--> ASKED --WELCOME--> OPEN --fin--> FINISHING --FIN_ACK--> DONE
       ^                 |                 |              |
       +------------ lost(): NACK of the stream, silence -+
"""

from __future__ import annotations

import enum
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from msgspec import Raw

from shared.events import join_events
from shared.wire import SCHEMA, WHOLE_STREAM, Ack, Data, Fin, FinAck, Hello, Nack, Welcome


class State(enum.Enum):
    CLOSED = "closed"
    ASKED = "asked"
    OPEN = "open"
    FINISHING = "finishing"
    DONE = "done"


REJECTED_MAX: Final = 1000
FRAME_OVERHEAD_BYTES: Final = 400
"""Memory that a frame takes beside its body."""


class FrameLost(Exception):
    """Error: a frame can't be loaded from the spool; its events are lost."""


@dataclass(slots=True)
class Frame:
    """Events that are sent together, always on these boundaries.

    load returns the packed array, from memory or from the spool, or raises
    FrameLost.
    """

    base_seq: int
    count: int
    size: int
    framed_ns: int
    load: Callable[[], bytes]
    is_spooled: bool = False

    @property
    def next_seq(self) -> int:
        return self.base_seq + self.count


class OutgoingStream:
    """The frames of one (run_id, session, source) from numbering to acknowledgement."""

    def __init__(
        self, number: int, run_id: str, session: str, source: str, *, is_late: bool = False
    ) -> None:
        self.number = number
        self.run_id = run_id
        self.session = session
        self.source = source
        self.is_late = is_late
        """True if the session has ended and these are the events left in its spool."""
        self.state = State.CLOSED
        self.next_seq = 0
        self.acknowledged = 0
        """Events that are known to be on the sidecar's disk."""
        self.lost_events = 0
        """Events whose frame could not be loaded again."""
        self.rejected: dict[int, str] = {}
        """Why the sidecar will never accept these events, by seq."""
        self.frames: deque[Frame] = deque()
        self.in_memory: deque[Frame] = deque()
        """Frames that are not in the spool; they are the newest ones."""
        self.memory_bytes = 0
        """Memory that the frames in in_memory take."""
        self.spooled_events = 0
        """Number of events in frames that are in the spool."""
        self._unsent = 0
        """Index in frames of the next frame to send."""
        self._held = 0
        """Number of oldest frames that the sidecar said it has received. They are kept until
        they are on its disk, but they are not in flight: they use no credit."""
        self._in_flight_bytes = 0
        self._credit_bytes = 0
        self._sent_seq = 0
        """Seq behind the last event that the sidecar can have without a hole: the seq of
        its WELCOME, or behind the events sent since."""

    @property
    def unacknowledged(self) -> int:
        """Number of frames sent, or reported as received, that are not acknowledged."""
        return self._unsent

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of frames that were sent since the last WELCOME and are not acknowledged."""
        return self._in_flight_bytes

    @property
    def can_send_now(self) -> bool:
        """True if a frame that is added now would be sent next."""
        return self.state is State.OPEN and self._unsent == len(self.frames)

    @property
    def is_told(self) -> bool:
        """True if every numbered event has been sent or is already held by the sidecar."""
        return self._sent_seq >= self.next_seq

    def add(self, events: list[bytes], now_ns: int) -> Frame:
        """Give these events their sequence numbers, and keep them as one frame."""
        body = join_events(events)
        return self.add_frame(Frame(self.next_seq, len(events), len(body), now_ns, lambda: body))

    def add_frame(self, frame: Frame) -> Frame:
        """Keep a frame that has its number already; it must follow the last one."""
        self.frames.append(frame)
        if frame.is_spooled:
            self.spooled_events += frame.count
        else:
            self.in_memory.append(frame)
            self.memory_bytes += frame.size + FRAME_OVERHEAD_BYTES
        self.next_seq = frame.next_seq
        return frame

    def moved_to_spool(self, load: Callable[[], bytes]) -> None:
        """Record that the oldest frame in memory is now in the spool, and free its memory."""
        frame = self.in_memory.popleft()
        frame.load = load
        frame.is_spooled = True
        self.memory_bytes -= frame.size + FRAME_OVERHEAD_BYTES
        self.spooled_events += frame.count

    def hello(self) -> Hello:
        """Return the HELLO that asks for the next seq; an idle stream sends it as a keepalive."""
        if self.state is State.CLOSED:
            self.state = State.ASKED
        first = self.frames[0].base_seq if self.frames else self.next_seq
        return Hello(
            self.number, self.run_id, self.session, self.source, SCHEMA, first, self.is_late
        )

    def sendable(self) -> Iterator[Data]:
        """Yield the messages that may be sent now, within the sidecar's credit.

        A message counts as sent when the next one is asked for: a caller whose socket is
        full stops iterating, and gets the same message the next time.
        """
        while self.state is State.OPEN and self._unsent < len(self.frames):
            frame = self.frames[self._unsent]
            # One frame may always be sent: one larger than the credit would never be.
            if self._in_flight_bytes and (self._in_flight_bytes + frame.size > self._credit_bytes):
                return
            if frame.base_seq > self._sent_seq:
                # The events before this frame are lost. Only a HELLO can report the hole,
                # and it names the oldest frame: frames before the hole have to be
                # acknowledged first.
                if self._unsent == 0:
                    self.state = State.CLOSED
                return
            try:
                body = frame.load()
            except FrameLost:
                self._forget_unsent()
                continue
            yield Data(self.number, frame.base_seq, Raw(body))
            self._unsent += 1
            self._in_flight_bytes += frame.size
            self._sent_seq = max(self._sent_seq, frame.next_seq)

    def fin(self) -> Fin:
        """Return the FIN that ends the stream. Every frame must be acknowledged."""
        self.state = State.FINISHING
        # The sidecar may have received more of an adopted stream than was in its spool.
        return Fin(self.number, max(self.next_seq, self._sent_seq))

    def lost(self) -> None:
        """Record that the sidecar may not know this stream any more: say HELLO, then resend."""
        if self.state is not State.DONE:
            self.state = State.CLOSED
            self._rewind(0)

    def on_welcome(self, message: Welcome) -> None:
        """Open the stream and continue after the frames that the sidecar has received.

        message.next_seq counts events received, which need not be on its disk yet.
        """
        if self.state is State.DONE:
            return
        self.state = State.OPEN
        self._credit_bytes = message.credit_bytes
        self._sent_seq = message.next_seq
        has = itertools.takewhile(lambda frame: frame.next_seq <= message.next_seq, self.frames)
        # Send the last received frame again: the ACK for it says how far all is on disk.
        # Otherwise no ACK might ever come, if all is on disk already and no new frame
        # follows (no more events, or a hole that only a HELLO can report).
        self._rewind(max(0, sum(1 for _ in has) - 1))

    def on_ack(self, message: Ack) -> list[Frame]:
        """Forget the frames that are on the sidecar's disk, and return them.

        An ACK beyond what the sidecar can have received is forged, and ignored.
        """
        if message.durable_seq >= self._sent_seq:
            return []
        self._credit_bytes = message.credit_bytes
        released: list[Frame] = []
        while self._unsent and self.frames[0].next_seq <= message.durable_seq + 1:
            self._unsent -= 1
            frame = self._pop_oldest()
            if self._held:
                self._held -= 1
            else:
                self._in_flight_bytes -= frame.size
            self.acknowledged += frame.count
            released.append(frame)
        return released

    def on_nack(self, message: Nack) -> bool:
        """Record a refusal: of one event for good, or of the whole stream for now.

        Returns True if it is about one event, and is reported for the first time.
        """
        if message.seq == WHOLE_STREAM:
            self.lost()
            return False
        if not 0 <= message.seq < self.next_seq or message.seq in self.rejected:
            return False
        if len(self.rejected) < REJECTED_MAX:
            self.rejected[message.seq] = message.reason
        return True

    def on_fin_ack(self, message: FinAck) -> None:
        """End the stream, unless an event came in the meantime."""
        if self.state is State.FINISHING:
            # An event may have been added between FIN and FIN_ACK: the stream goes on.
            self.state = State.CLOSED if self.frames else State.DONE

    def _rewind(self, held: int) -> None:
        """Start sending again behind the first held frames, with nothing in flight."""
        self._unsent = self._held = held
        self._in_flight_bytes = 0

    def _pop_oldest(self) -> Frame:
        frame = self.frames.popleft()
        if frame.is_spooled:
            self.spooled_events -= frame.count
        else:
            self.in_memory.popleft()
            self.memory_bytes -= frame.size + FRAME_OVERHEAD_BYTES
        return frame

    def _forget_unsent(self) -> None:
        """Give up the next frame to send, whose events are lost. It was in the spool."""
        frame = self.frames[self._unsent]
        del self.frames[self._unsent]
        self.spooled_events -= frame.count
        self.lost_events += frame.count
