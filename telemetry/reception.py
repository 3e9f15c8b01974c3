"""Reception: what the reading thread answers by itself, and what it hands on.

In: messages of peers, and the answers of the journal thread on their way out.
Out: answers that need no disk; everything else goes into the inbox.
Never: waits, or says that something is on disk before the journal thread has said so.

Of each stream there are three numbers: *queued*, up to which events were handed on;
*appended*, in the journal; *durable*, on disk. The first is kept here, the others by the
journal thread. Where it could not go on as far as was queued it says WELCOME, and what
lies behind that number is asked for again.

Not thread-safe: the reading thread owns it. `heard` and `credit_bytes` cross threads,
each written as one value.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
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
from telemetry.inbox import CREDIT_MAX_BYTES, QUEUE_MAX_BYTES, Inbox
from telemetry.streams import StreamKey

STALLED_NS: Final = 1_000_000_000
"""A journal thread that did not turn for so long waits for a disk."""

FORGOTTEN_NS: Final = 600_000_000_000
WAIT: Final = "wait: "
"""How the reason of a refusal begins that is over by itself."""

Reply = tuple[bytes, Message]


@dataclass
class KnownStream:
    """A stream that the journal thread has welcomed."""

    hello: Hello
    queued: int
    durable_seq: int
    heard_ns: int
    is_behind: bool = False
    """Frames of it were thrown away: they are asked for again when there is room."""


class Reception:
    """The desk at which peers are answered at once."""

    def __init__(self, inbox: Inbox, clock: Clock) -> None:
        self.counts: Counter[str] = Counter()
        self.credit_bytes = CREDIT_MAX_BYTES
        """What a stream may have unacknowledged now, published by the journal thread."""
        self.turned_ns = clock.monotonic_ns()
        """When the journal thread last took something, or found nothing to take."""
        self._inbox = inbox
        self._clock = clock
        self._known: dict[StreamKey, KnownStream] = {}
        self._asked: dict[StreamKey, Hello] = {}
        """HELLOs that the journal thread has not answered yet."""
        self._behind: set[StreamKey] = set()
        self._heard: dict[StreamKey, int] = {}

    @property
    def is_stalled(self) -> bool:
        """True while the journal thread waits for a disk."""
        return self._clock.monotonic_ns() - self.turned_ns > STALLED_NS

    def taken_heard(self) -> dict[StreamKey, int]:
        """When streams were last heard of that were answered here. The journal thread calls."""
        heard, self._heard = self._heard, {}
        return heard

    def take_in(self, peer: bytes, message: Message) -> list[Reply]:
        """Take in one message of a peer, and return what can be answered at once."""
        match message:
            case Hello():
                answers = self._on_hello(peer, message)
            case Data():
                answers = self._on_data(peer, message)
            case Fin():
                answers = self._on_fin(peer, message)
            case _:
                self.counts["unexpected_messages_total"] += 1
                answers = []
        return [(peer, answer) for answer in answers]

    def passes(self, peer: bytes, answer: Message) -> None:
        """Learn from an answer of the journal thread on its way to a peer."""
        match answer:
            case Welcome():
                self._learn_welcome((peer, answer.stream), answer)
            case Ack():
                if (stream := self._known.get((peer, answer.stream))) is not None:
                    stream.durable_seq = max(stream.durable_seq, answer.durable_seq)
                    stream.queued = max(stream.queued, answer.durable_seq + 1)
            case FinAck():
                self._forget((peer, answer.stream))
            case Nack(seq=seq) if seq == WHOLE_STREAM:
                self._forget((peer, answer.stream))

    def ask_again(self) -> list[Reply]:
        """Ask for what was thrown away, where there is room for it by now."""
        answers: list[Reply] = []
        for key in list(self._behind):
            if self._inbox.bytes_held > QUEUE_MAX_BYTES // 2 or self.is_stalled:
                break
            if not self._inbox.has_room(key[0], QUEUE_MAX_BYTES // 8):
                continue
            if (stream := self._known.get(key)) is not None:
                answers.append((key[0], self._welcome(key, stream)))
            self._behind.discard(key)
        return answers

    def forget_silent(self) -> None:
        """Forget streams of which nobody has spoken for long. Now and then."""
        now = self._clock.monotonic_ns()
        for key, stream in list(self._known.items()):
            if now - stream.heard_ns > FORGOTTEN_NS:
                self._forget(key)

    # --- messages

    def _on_hello(self, peer: bytes, hello: Hello) -> list[Message]:
        key = peer, hello.stream
        stream = self._known.get(key)
        if stream is not None and _is_same(stream.hello, hello):
            self._hear(key, stream)
            if hello.first_seq <= stream.queued:
                return self._standing(key, stream)
        elif self.is_stalled:
            return [self._refusal(hello.stream, "the disk stands still")]
        # In line, where frames of the peer are in line: those before it are of a former
        # stream of this number, or what it says to be lost comes behind them.
        is_in_line = stream is not None or self._inbox.holds_of(peer)
        put = self._inbox.put_in_line if is_in_line else self._inbox.put_opening
        if not put(peer, hello):
            return [self._refusal(hello.stream, "too many streams are being opened")]
        self._asked[key] = hello
        return []

    def _on_data(self, peer: bytes, data: Data) -> list[Message]:
        key = peer, data.stream
        stream = self._known.get(key)
        if stream is None:
            return [Nack(data.stream, WHOLE_STREAM, "unknown stream")]
        self._hear(key, stream)
        events = memoryview(data.events)
        is_hole = stream.is_behind and data.base_seq > stream.queued
        if is_hole or not self._inbox.put(peer, data, len(events)):
            # Thrown away, and so is what follows it: it is asked for when there is room.
            self.counts["frames_over_credit_total"] += 1
            stream.is_behind = True
            self._behind.add(key)
            return []
        count = count_of(events)
        if data.base_seq <= stream.queued and count is not None:
            stream.queued = max(stream.queued, data.base_seq + count)
        return []

    def _on_fin(self, peer: bytes, fin: Fin) -> list[Message]:
        key = peer, fin.stream
        stream = self._known.get(key)
        if stream is None:
            return [Nack(fin.stream, WHOLE_STREAM, "unknown stream")]
        self._hear(key, stream)
        if not self._inbox.put_in_line(peer, fin):
            self.counts["frames_over_credit_total"] += 1
        return []

    # --- what is known

    def _hear(self, key: StreamKey, stream: KnownStream) -> None:
        self._heard[key] = stream.heard_ns = self._clock.monotonic_ns()

    def _standing(self, key: StreamKey, stream: KnownStream) -> list[Message]:
        """Where a stream stands: what was received, and what of it is on disk."""
        answers: list[Message] = [self._welcome(key, stream)]
        if stream.durable_seq >= 0:
            answers.append(Ack(key[1], stream.durable_seq, self._credit()))
        return answers

    def _welcome(self, key: StreamKey, stream: KnownStream) -> Welcome:
        stream.is_behind = False
        self._behind.discard(key)
        return Welcome(key[1], stream.queued, self._credit())

    def _credit(self) -> int:
        is_full = self._inbox.bytes_held > QUEUE_MAX_BYTES * 3 // 4
        return 0 if is_full or self.is_stalled else self.credit_bytes

    def _refusal(self, number: int, reason: str = "too much is queued") -> Nack:
        self.counts["streams_told_to_wait_total"] += 1
        return Nack(number, WHOLE_STREAM, WAIT + reason)

    def _learn_welcome(self, key: StreamKey, welcome: Welcome) -> None:
        hello = self._asked.pop(key, None)
        stream = self._known.get(key)
        if hello is not None:
            now = self._clock.monotonic_ns()
            self._known[key] = KnownStream(hello, welcome.next_seq, -1, now)
        elif stream is not None:
            # Handed back: the journal thread could not go on as far as was queued.
            stream.queued = welcome.next_seq

    def _forget(self, key: StreamKey) -> None:
        self._known.pop(key, None)
        self._asked.pop(key, None)
        self._behind.discard(key)


def _is_same(known: Hello, hello: Hello) -> bool:
    place = known.run_id, known.session, known.source
    return place == (hello.run_id, hello.session, hello.source) and known.late >= hello.late


def count_of(events: memoryview) -> int | None:
    """The number of events in a frame by its head, or None where it is no array."""
    head = events[0] if events else 0
    if head & 0xF0 == 0x90:
        return head & 0x0F
    if head == 0xDC and len(events) >= 3:
        return int.from_bytes(events[1:3], "big")
    return None
