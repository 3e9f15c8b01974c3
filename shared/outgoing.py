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
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from msgspec import Raw

from shared.events import join_events
from shared.wire import SCHEMA, WHOLE_STREAM, Ack, Data, Fin, FinAck, Hello, Nack, Welcome


class State(enum.Enum):
    CLOSED = "closed"
    ASKED = "asked"
    OPEN = "open"
    FINISHING = "finishing"
    DONE = "done"


@dataclass
class Frame:
    """Events that are sent together, always on these boundaries.

    load gives the packed array, from memory or from where it was put.
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

    def __init__(self, number: int, run_id: str, session: str, source: str) -> None:
        self.number = number
        self.run_id = run_id
        self.session = session
        self.source = source
        self.state = State.CLOSED
        self.next_seq = 0
        self.acknowledged = 0
        """Events that are known to be on the sidecar's disk."""
        self.rejected: dict[int, str] = {}
        """Why the sidecar will never accept these events, by seq."""
        self.frames: deque[Frame] = deque()
        self.memory_bytes = 0
        """Of the frames that are in memory, not in the spool."""
        self._unsent = 0
        """Index in frames of the next one to send."""
        self._in_flight_bytes = 0
        self._credit_bytes = 0

    @property
    def in_flight(self) -> int:
        """Frames sent and not acknowledged."""
        return self._unsent

    def add(self, events: list[bytes], now_ns: int) -> Frame:
        """Number these events, and keep them as one frame."""
        body = join_events(events)
        return self.add_frame(Frame(self.next_seq, len(events), len(body), now_ns, lambda: body))

    def add_frame(self, frame: Frame) -> Frame:
        """Keep a frame that was numbered already; it follows the last one."""
        self.frames.append(frame)
        if not frame.is_spooled:
            self.memory_bytes += frame.size
        self.next_seq = frame.next_seq
        return frame

    def moved_to_spool(self, frame: Frame, load: Callable[[], bytes]) -> None:
        """This frame is on our own disk now; its memory is free."""
        frame.load = load
        frame.is_spooled = True
        self.memory_bytes -= frame.size

    def hello(self) -> Hello:
        """Ask where to go on; also how an idle stream says that it is alive."""
        if self.state is State.CLOSED:
            self.state = State.ASKED
        first = self.frames[0].base_seq if self.frames else self.next_seq
        return Hello(self.number, self.run_id, self.session, self.source, SCHEMA, first)

    def sendable(self) -> Iterator[Data]:
        """Messages that may go now. Each counts as sent when the next is asked for,
        so a caller whose socket is full stops and offers that one again."""
        while self.state is State.OPEN and self._unsent < len(self.frames):
            frame = self.frames[self._unsent]
            # One frame may always go, or a frame above the credit would never.
            if self._in_flight_bytes and (self._in_flight_bytes + frame.size > self._credit_bytes):
                return
            yield Data(self.number, frame.base_seq, Raw(frame.load()))
            self._unsent += 1
            self._in_flight_bytes += frame.size

    def fin(self) -> Fin:
        """End the stream here, once every frame is acknowledged."""
        self.state = State.FINISHING
        return Fin(self.number, self.next_seq)

    def lost(self) -> None:
        """The sidecar does not know this stream any more: ask again, then resend."""
        if self.state is not State.DONE:
            self.state = State.CLOSED
            self._rewind(0)

    def on_welcome(self, message: Welcome) -> None:
        """Go on from where the sidecar stands, on the first boundaries of the frames."""
        if self.state is State.DONE:
            return
        self.state = State.OPEN
        self._credit_bytes = message.credit_bytes
        have = sum(1 for frame in self.frames if frame.next_seq <= message.next_seq)
        self._rewind(have)

    def on_ack(self, message: Ack) -> list[Frame]:
        """Let go of what is on disk, and return it. A forged ack beyond what was
        sent lets go of nothing."""
        self._credit_bytes = message.credit_bytes
        released: list[Frame] = []
        while self._unsent and self.frames[0].next_seq <= message.durable_seq + 1:
            frame = self.frames.popleft()
            self._unsent -= 1
            self._in_flight_bytes -= frame.size
            if not frame.is_spooled:
                self.memory_bytes -= frame.size
            self.acknowledged += frame.count
            released.append(frame)
        return released

    def on_nack(self, message: Nack) -> None:
        """One event is refused for good; or the whole stream, for now."""
        if message.seq == WHOLE_STREAM:
            self.lost()
        elif len(self.rejected) < 1000 and 0 <= message.seq < self.next_seq:
            self.rejected[message.seq] = message.reason

    def on_fin_ack(self, message: FinAck) -> None:
        if self.state is State.FINISHING:
            self.state = State.DONE

    def _rewind(self, unsent: int) -> None:
        self._unsent = unsent
        self._in_flight_bytes = sum(self.frames[i].size for i in range(unsent))
