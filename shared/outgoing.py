"""One stream as its sender sees it: numbered frames, kept until they are on disk.

In: frames of packed events, and what the sidecar answers.
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
"""What a frame takes in memory beside its body."""


class FrameLost(Exception):
    """A frame can't be loaded from where it was put: its events are gone."""


@dataclass(slots=True)
class Frame:
    """Events that are sent together, always on these boundaries.

    load gives the packed array, from memory or from where it was put, or
    raises FrameLost.
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
        """The session is over: these are the events that its spool still had."""
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
        """Those of the frames that are not in the spool: the newest ones."""
        self.memory_bytes = 0
        """What those in memory take."""
        self.spooled_events = 0
        """Events in the others."""
        self._unsent = 0
        """Index in frames of the next one to send."""
        self._held = 0
        """Frames, the oldest ones, that the sidecar said it has. They are kept until they
        are known to be on its disk, but they are not in flight: they take no credit."""
        self._in_flight_bytes = 0
        self._credit_bytes = 0
        self._told_seq = 0
        """Seq up to which the sidecar can have events of ours without a hole: where it
        said that it stands, and what was sent since."""

    @property
    def unacknowledged(self) -> int:
        """Frames that the sidecar was sent, or said it has, and did not acknowledge."""
        return self._unsent

    @property
    def in_flight_bytes(self) -> int:
        """What was sent since the sidecar said where it stands, and not acknowledged."""
        return self._in_flight_bytes

    @property
    def can_send_now(self) -> bool:
        """A frame that is added now goes at once."""
        return self.state is State.OPEN and self._unsent == len(self.frames)

    @property
    def is_told(self) -> bool:
        """True if every numbered event has been sent or is already held by the sidecar."""
        return self._told_seq >= self.next_seq

    def add(self, events: list[bytes], now_ns: int) -> Frame:
        """Number these events, and keep them as one frame."""
        body = join_events(events)
        return self.add_frame(Frame(self.next_seq, len(events), len(body), now_ns, lambda: body))

    def add_frame(self, frame: Frame) -> Frame:
        """Keep a frame that was numbered already; it follows the last one."""
        self.frames.append(frame)
        if frame.is_spooled:
            self.spooled_events += frame.count
        else:
            self.in_memory.append(frame)
            self.memory_bytes += frame.size + FRAME_OVERHEAD_BYTES
        self.next_seq = frame.next_seq
        return frame

    def moved_to_spool(self, load: Callable[[], bytes]) -> None:
        """The oldest frame in memory is on our own disk now; its memory is free."""
        frame = self.in_memory.popleft()
        frame.load = load
        frame.is_spooled = True
        self.memory_bytes -= frame.size + FRAME_OVERHEAD_BYTES
        self.spooled_events += frame.count

    def hello(self) -> Hello:
        """Ask where to go on; also how an idle stream says that it is alive."""
        if self.state is State.CLOSED:
            self.state = State.ASKED
        first = self.frames[0].base_seq if self.frames else self.next_seq
        return Hello(
            self.number, self.run_id, self.session, self.source, SCHEMA, first, self.is_late
        )

    def sendable(self) -> Iterator[Data]:
        """Messages that may go now. Each counts as sent when the next is asked for,
        so a caller whose socket is full stops and offers that one again."""
        while self.state is State.OPEN and self._unsent < len(self.frames):
            frame = self.frames[self._unsent]
            # One frame may always go, or a frame above the credit would never.
            if self._in_flight_bytes and (self._in_flight_bytes + frame.size > self._credit_bytes):
                return
            if frame.base_seq > self._told_seq:
                # Events between are lost. Only a HELLO can say so, and it speaks of
                # the oldest frame: what is before the hole has to be on disk first.
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
            self._told_seq = max(self._told_seq, frame.next_seq)

    def fin(self) -> Fin:
        """End the stream here, once every frame is acknowledged."""
        self.state = State.FINISHING
        # The sidecar may have more of an orphan than its spool had.
        return Fin(self.number, max(self.next_seq, self._told_seq))

    def lost(self) -> None:
        """The sidecar does not know this stream any more: ask again, then resend."""
        if self.state is not State.DONE:
            self.state = State.CLOSED
            self._rewind(0)

    def on_welcome(self, message: Welcome) -> None:
        """Go on from where the sidecar stands, on the first boundaries of the frames.

        Its number says what it has received, which need not be on its disk yet.
        """
        if self.state is State.DONE:
            return
        self.state = State.OPEN
        self._credit_bytes = message.credit_bytes
        self._told_seq = message.next_seq
        has = itertools.takewhile(lambda frame: frame.next_seq <= message.next_seq, self.frames)
        # The last frame that it has goes again: the answer tells how far all is on disk.
        # Without it nothing might ever be acknowledged, where all is durable already and
        # nothing can follow (no more events, or a hole that only a HELLO can tell).
        self._rewind(max(0, sum(1 for _ in has) - 1))

    def on_ack(self, message: Ack) -> list[Frame]:
        """Let go of what is on disk, and return it. A forged ack beyond what the
        sidecar can have lets go of nothing."""
        if message.durable_seq >= self._told_seq:
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
        """One event is refused for good; or the whole stream, for now.

        True where it is one event, and that is news.
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
            # An event may have come between FIN and its answer: then it goes on.
            self.state = State.CLOSED if self.frames else State.DONE

    def _rewind(self, held: int) -> None:
        """Nothing is in flight: the sidecar holds so many frames, the next ones are to be sent."""
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
