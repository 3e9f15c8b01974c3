"""Reception: answers peers from memory while the journal thread may be waiting for a disk.

In: messages of peers, and the answers of the journal thread on their way out.
Out: answers that need no disk; everything else goes into the inbox.
Never: waits, or says that something is on disk before the journal thread has said so.

Three numbers of each stream, in the order in which they grow:

    next_seq   events before it were handed to the journal thread; kept here
    appended   events before it are in the journal; kept by the journal thread
    durable    events up to it are on disk; kept by the journal thread, copied here

Where the journal thread could not append all that was queued it sends WELCOME with the
number where it stands. `passes` sets next_seq back to it, and the peer sends again from there.

Not thread-safe: the reading thread owns it. Three values cross threads, each replaced as
a whole: `credit_bytes` and `polled_ns`, which the journal thread writes, and the times that
it takes with `taken_heard`.
"""

from __future__ import annotations

from typing import Final

from shared.clock import Clock
from shared.wire import (
    WHOLE_STREAM,
    Ack,
    Data,
    Fin,
    FinAck,
    Hello,
    Message,
    Nack,
    Welcome,
)
from telemetry.ingest.handler import Handler, Reply, unknown_stream
from telemetry.ingest.inbox import CREDIT_MAX_BYTES, QUEUE_MAX_BYTES, Inbox
from telemetry.ingest.streams import ReceivedStream, StreamKey, StreamTable

STALLED_NS: Final = 1_000_000_000
"""A journal thread that took nothing for so long is waiting for a disk."""

FORGOTTEN_NS: Final = 600_000_000_000
"""A stream of which nothing was heard for so long is forgotten; a HELLO opens it again."""

WAIT: Final = "wait: "
"""First word of the reason of a NACK that asks the peer to try again later."""


class Reception(Handler):
    """Decides for each message: answer at once, hand it to the journal thread, or throw it away.

    Not thread-safe: the reading thread owns it.
    """

    def __init__(self, inbox: Inbox, clock: Clock) -> None:
        super().__init__()
        self.credit_bytes = CREDIT_MAX_BYTES
        """What a stream may have unacknowledged now, published by the journal thread."""
        self.polled_ns = clock.monotonic_ns()
        """When the journal thread last took something, or found nothing to take."""
        self._inbox = inbox
        self._clock = clock
        self._streams: StreamTable[ReceivedStream] = StreamTable()
        self._asked: dict[StreamKey, Hello] = {}
        """HELLOs that the journal thread has not answered yet."""
        self._behind: set[StreamKey] = set()
        """Keys of the streams that are `is_behind`."""
        self._heard: dict[StreamKey, int] = {}

    @property
    def is_stalled(self) -> bool:
        """True while the journal thread waits for a disk."""
        return self._clock.monotonic_ns() - self.polled_ns > STALLED_NS

    def taken_heard(self) -> dict[StreamKey, int]:
        """Return the time when each stream was last heard of here, and forget these times.

        Called by the journal thread. Replaced as one value: it needs no lock.
        """
        heard, self._heard = self._heard, {}
        return heard

    def passes(self, peer: bytes, answer: Message) -> None:
        """Learn from an answer of the journal thread that is about to be sent to its peer."""
        match answer:
            # The stream is open, or was set back.
            case Welcome():
                self._learn_welcome((peer, answer.stream), answer)
            # More of it is on disk: a WELCOME repeated from here may say so.
            case Ack():
                if (stream := self._streams.get((peer, answer.stream))) is not None:
                    stream.durable_seq = max(stream.durable_seq, answer.durable_seq)
                    stream.next_seq = max(stream.next_seq, answer.durable_seq + 1)
            # It has ended, or is unknown or refused: the peer opens it anew if need be.
            case FinAck():
                self._forget((peer, answer.stream))
            case Nack(seq=seq) if seq == WHOLE_STREAM:
                self._forget((peer, answer.stream))

    def ask_again(self) -> list[Reply]:
        """Return a WELCOME for each stream that had a frame thrown away, while there is room."""
        answers: list[Reply] = []
        for key in list(self._behind):
            # Only at half the bound, or each frame that fits would be asked for by itself.
            if self._inbox.bytes_held > QUEUE_MAX_BYTES // 2 or self.is_stalled:
                break
            if not self._inbox.has_room(key[0], QUEUE_MAX_BYTES // 8):
                continue
            if (stream := self._streams.get(key)) is not None:
                answers.append((key[0], self._welcome(stream)))
            self._behind.discard(key)
        return answers

    def forget_silent(self) -> None:
        """Forget the streams of peers that have been silent for FORGOTTEN_NS."""
        now = self._clock.monotonic_ns()
        for stream in self._streams:
            if now - stream.heard_ns > FORGOTTEN_NS:
                self._forget(stream.key)

    # --- messages

    def _on_hello(self, peer: bytes, hello: Hello) -> list[Message]:
        """Answer a repeated HELLO from memory; hand any other to the journal thread."""
        key = peer, hello.stream
        stream = self._streams.get(key)
        # 1. A stream that is open: a keepalive, or the peer has missed the WELCOME. Answered
        #    here, so that a stalled disk does not look like a dead sidecar.
        if stream is not None and stream.is_asked_for_by(hello):
            self._hear(stream)
            if hello.first_seq <= stream.next_seq:
                return self._standing(stream)
        # 2. A new stream while the disk is stalled: it can't be opened, but its peer learns why.
        elif self.is_stalled:
            return [self._refusal(hello.stream, "the disk stands still")]
        # 3. Everything else opens a stream, or says that events were lost. It waits behind
        #    frames of its peer where there are any: they belong to the former stream of this
        #    number, or come before the events that are lost. Else it waits among openings,
        #    which may be slow, and delays no frames.
        is_in_line = stream is not None or self._inbox.holds_of(peer)
        put = self._inbox.put_in_line if is_in_line else self._inbox.put_opening
        if not put(peer, hello):
            return [self._refusal(hello.stream, "too many streams are being opened")]
        # 4. The WELCOME of the journal thread, seen by `passes`, makes the stream known.
        self._asked[key] = hello
        return []

    def _on_data(self, peer: bytes, data: Data) -> list[Message]:
        """Hand a frame to the journal thread, or throw it away where there is no room."""
        # 1. Find the stream. Its peer opens a stream anew when told that it is unknown.
        key = peer, data.stream
        stream = self._streams.get(key)
        if stream is None:
            return unknown_stream(data.stream)
        self._hear(stream)
        # 2. Throw the frame away where the inbox is full, or where one before it was thrown
        #    away: the journal thread could not append it. `ask_again` makes up for both.
        events = memoryview(data.events)
        is_hole = stream.is_behind and data.base_seq > stream.next_seq
        if is_hole or not self._inbox.put(peer, data, len(events)):
            self.counts["frames_over_credit_total"] += 1
            stream.is_behind = True
            self._behind.add(key)
            return []
        # 3. Note how far the stream is queued. A frame whose head names no count leaves the
        #    number as it is; the journal thread refuses it, and says where it stands.
        count = count_of(events)
        if data.base_seq <= stream.next_seq and count is not None:
            stream.next_seq = max(stream.next_seq, data.base_seq + count)
        return []

    def _on_fin(self, peer: bytes, fin: Fin) -> list[Message]:
        """Hand a FIN to the journal thread, behind the frames of its peer.

        Without room it is thrown away: the peer repeats it until it has a FIN_ACK.
        """
        key = peer, fin.stream
        stream = self._streams.get(key)
        if stream is None:
            return unknown_stream(fin.stream)
        self._hear(stream)
        if not self._inbox.put_in_line(peer, fin):
            self.counts["frames_over_credit_total"] += 1
        return []

    # --- what is known

    def _hear(self, stream: ReceivedStream) -> None:
        self._heard[stream.key] = stream.heard_ns = self._clock.monotonic_ns()

    def _standing(self, stream: ReceivedStream) -> list[Message]:
        """Return a WELCOME, which says what was received, and an ACK for what is on disk."""
        answers: list[Message] = [self._welcome(stream)]
        if stream.durable_seq >= 0:
            answers.append(Ack(stream.number, stream.durable_seq, self._credit()))
        return answers

    def _welcome(self, stream: ReceivedStream) -> Welcome:
        stream.is_behind = False
        self._behind.discard(stream.key)
        return Welcome(stream.number, stream.next_seq, self._credit())

    def _credit(self) -> int:
        is_full = self._inbox.bytes_held > QUEUE_MAX_BYTES * 3 // 4
        return 0 if is_full or self.is_stalled else self.credit_bytes

    def _refusal(self, number: int, reason: str = "too much is queued") -> Nack:
        self.counts["streams_told_to_wait_total"] += 1
        return Nack(number, WHOLE_STREAM, WAIT + reason)

    def _learn_welcome(self, key: StreamKey, welcome: Welcome) -> None:
        hello = self._asked.pop(key, None)
        stream = self._streams.get(key)
        if hello is not None:
            now = self._clock.monotonic_ns()
            place = *key, hello.stream_id, hello.late
            self._streams.add(ReceivedStream(*place, welcome.next_seq, -1, now))
        elif stream is not None:
            # Set back: the journal thread could not append all that was queued.
            stream.next_seq = welcome.next_seq

    def _forget(self, key: StreamKey) -> None:
        self._streams.remove(key)
        self._asked.pop(key, None)
        self._behind.discard(key)


def count_of(events: memoryview) -> int | None:
    """Return the number of events that the MessagePack head of a frame names; None for no array."""
    head = events[0] if events else 0
    if head & 0xF0 == 0x90:
        return head & 0x0F
    if head == 0xDC and len(events) >= 3:
        return int.from_bytes(events[1:3], "big")
    return None
