"""Outgoing stream: one stream of an emitter, from HELLO to FIN_ACK, and all its transitions.

In: frames of packed events, and the answers of the sidecar.
Out: the messages to send now.
Never: touches a socket, a clock or a file, so every interleaving can be tested.

Not thread-safe: the sender thread owns it. Nobody else changes its state:

    CLOSED --hello--> ASKED --WELCOME--> OPEN --fin--> FINISHING --FIN_ACK--> DONE
       ^                 |                 |              |
       +-----------------+-----------------+--------------+  back to the start:

    lost()      NACK of the whole stream, a FIN without an answer, a socket made anew:
                the sidecar may not know the stream any more
    sendable()  the next events are lost, and nothing before them waits for its ACK
    finish()    the last events are lost
    FIN_ACK     an event was added after FIN

An answer is taken in every state: it may be one that was on its way when the state changed.
A WELCOME opens the stream in any state but DONE.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Raw

from shared.emitter.frames import Frame, FrameLost, Frames
from shared.events import join_events
from shared.ids import StreamId
from shared.wire import SCHEMA, WHOLE_STREAM, Ack, Data, Fin, FinAck, Hello, Nack, Welcome


class State(enum.Enum):
    CLOSED = "closed"
    ASKED = "asked"
    OPEN = "open"
    FINISHING = "finishing"
    DONE = "done"


REFUSED_SEQS_MAX: Final = 1000
"""Events that the sidecar refused are remembered by number, at most so many of them."""


class OutgoingStream:
    """The frames of one (run_id, session, source) from numbering to acknowledgement."""

    def __init__(
        self, number: int, run_id: str, session: str, source: str, *, is_late: bool = False
    ) -> None:
        self.number = number
        self.id = StreamId(run_id, session, source)
        self.is_late = is_late
        """True if the session has ended and these are the events left in its spool."""
        self.state = State.CLOSED
        self.next_seq = 0
        self.acknowledged = 0
        """Events that are known to be on the sidecar's disk."""
        self.lost_events = 0
        """Events whose frame could not be loaded again."""
        self.refused_events = 0
        """Events that the sidecar will never accept; they count as acknowledged too."""
        self.frames = Frames()
        self._refused_seqs: set[int] = set()
        self._unsent = 0
        """Index in frames of the next frame to send."""
        self._held = 0
        """Number of oldest frames that the sidecar has reported as received. They are kept until
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
    def unacknowledged_events(self) -> int:
        """Number of events that have a number, and are neither acknowledged nor lost."""
        return self.next_seq - self.acknowledged - self.lost_events

    @property
    def is_done(self) -> bool:
        """True if the sidecar has confirmed the end of the stream."""
        return self.state is State.DONE

    @property
    def is_answer_due(self) -> bool:
        """True if the sidecar has to answer before anything else can be sent."""
        return self.state in (State.CLOSED, State.ASKED, State.FINISHING)

    @property
    def is_unused(self) -> bool:
        """True if no event has got a number and no sidecar knows the stream: it needs no end."""
        return self.next_seq == 0 and self.state in (State.CLOSED, State.ASKED)

    def add(self, events: list[bytes], now_ns: int) -> Frame:
        """Give these events their sequence numbers, and keep them as one frame."""
        body = join_events(events)
        return self.add_frame(Frame(self.next_seq, len(events), len(body), now_ns, lambda: body))

    def add_frame(self, frame: Frame) -> Frame:
        """Keep a frame that has its number already; it must follow the last one."""
        self.frames.append(frame)
        self.next_seq = frame.next_seq
        return frame

    def moved_to_spool(self, load: Callable[[], bytes]) -> None:
        """Record that the oldest frame in memory is now in the spool, and free its memory."""
        self.frames.moved_to_spool(load)

    def rename(self, source: str) -> None:
        """Say HELLO under another source name from now on."""
        self.id = self.id._replace(source=source)

    # --- transitions: what is sent

    def hello(self) -> Hello:
        """Return the HELLO that asks for the next seq; an idle stream sends it as a keepalive."""
        # A FIN that was not answered: the sidecar may have forgotten the stream.
        if self.state is State.FINISHING:
            self.lost()
        if self.state is State.CLOSED:
            self.state = State.ASKED
        first = self.frames[0].base_seq if self.frames else self.next_seq
        return Hello(self.number, *self.id, SCHEMA, first, self.is_late)

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

    def finish(self) -> Fin | None:
        """Return the FIN that ends the stream, if every frame is acknowledged, else None."""
        if self.state is not State.OPEN or self.frames:
            return None
        if self._sent_seq < self.next_seq:
            # The last events are lost, and no frame follows that could show the hole: only
            # a HELLO can report it.
            self.lost()
            return None
        self.state = State.FINISHING
        # The sidecar may have received more of an adopted stream than was in its spool.
        return Fin(self.number, max(self.next_seq, self._sent_seq))

    # --- transitions: what the sidecar says

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

    def on_ack(self, message: Ack) -> None:
        """Forget the frames that are on the sidecar's disk.

        An ACK beyond what the sidecar can have received is forged, and ignored.
        """
        if message.durable_seq >= self._sent_seq:
            return
        self._credit_bytes = message.credit_bytes
        while self._unsent and self.frames[0].next_seq <= message.durable_seq + 1:
            self._unsent -= 1
            frame = self.frames.pop_oldest()
            if self._held:
                self._held -= 1
            else:
                self._in_flight_bytes -= frame.size
            self.acknowledged += frame.count

    def on_nack(self, message: Nack) -> None:
        """Record a refusal: of one event for good, or of the whole stream for now."""
        if message.seq == WHOLE_STREAM:
            self.lost()
        elif 0 <= message.seq < self.next_seq and message.seq not in self._refused_seqs:
            # A refusal may be repeated: the frame of the event may have been sent twice.
            if len(self._refused_seqs) < REFUSED_SEQS_MAX:
                self._refused_seqs.add(message.seq)
            self.refused_events += 1

    def on_fin_ack(self, message: FinAck) -> None:
        """End the stream, unless an event came in the meantime."""
        if self.state is State.FINISHING:
            # An event may have been added between FIN and FIN_ACK: the stream goes on.
            self.state = State.CLOSED if self.frames else State.DONE

    def _rewind(self, held: int) -> None:
        """Start sending again behind the first held frames, with nothing in flight."""
        self._unsent = self._held = held
        self._in_flight_bytes = 0

    def _forget_unsent(self) -> None:
        """Count the next frame to send as lost: it was in the spool, and can't be loaded."""
        self.lost_events += self.frames.remove_spooled(self._unsent).count
