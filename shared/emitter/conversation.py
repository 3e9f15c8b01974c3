"""Conversation: the messages between a sender and the sidecar about several streams.

In: streams with frames to send.
Out: messages on the wire; each answer changes the state of its stream.
Never: makes a frame, or forgets one that is not acknowledged.

Not thread-safe: one thread owns it, with its connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.clock import Clock
from shared.emitter.connection import Connection
from shared.emitter.spool import Spool, SpoolDamaged, adopt_orphans
from shared.emitter.stream import Frame, FrameLost, OutgoingStream, State
from shared.ids import WORKER, main_source
from shared.text import clean
from shared.wire import Ack, FinAck, Message, Nack, Welcome

log = logging.getLogger("telemetry.emitter")

HELLO_INTERVAL_NS: Final = 500_000_000
"""Time between two HELLOs, or two FINs, that are not answered yet."""
KEEPALIVE_NS: Final = 5_000_000_000
"""Time between two HELLOs of an idle stream, which only say that it is alive."""
ACK_OVERDUE_NS: Final = 2_000_000_000
"""If frames are unacknowledged for so long, a HELLO asks how far the sidecar is."""
NOTICES_MAX: Final = 10
SILENCE_NS: Final = 8_000_000_000
"""If a message that needs an answer gets none for so long, the socket is rebuilt."""


@dataclass
class Peer:
    """A stream, and the state of the exchange with the sidecar about it."""

    stream: OutgoingStream
    spool: Spool | None = None
    is_complete: bool = False
    """True if no frame will be added: once all are acknowledged, FIN is sent."""

    asked_ns: int = 0
    """Monotonic time of the last HELLO or FIN."""
    heard_ns: int = 0
    """Monotonic time of the last message about this stream."""
    refusal: str = ""
    """Reason of the last NACK of the whole stream; empty after a WELCOME."""


class Conversation:
    """The exchange of messages about many streams over one connection."""

    def __init__(
        self,
        connection: Connection,
        clock: Clock,
        on_released: Callable[[Peer, list[Frame]], None] = lambda peer, frames: None,
        on_refused: Callable[[Peer], None] = lambda peer: None,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._on_released = on_released
        self._on_refused = on_refused
        self.unanswered_since_ns: int | None = None
        self._told: set[str] = set()
        """Notices of the sidecar that were logged already."""

    def turn(self, peers: Iterable[Peer]) -> None:
        """Handle the messages received, then send what is due for each stream."""
        # 1. Handle every message that has arrived.
        peers = list(peers)
        by_number = {peer.stream.number: peer for peer in peers}
        for message in self._connection.receive():
            self._on_message(message, by_number)
        # 2. For each stream: HELLO if due, frames within the credit, FIN if complete.
        now = self._clock.monotonic_ns()
        for peer in peers:
            self._ask(peer, now)
            self._send_frames(peer)
            self._finish(peer, now)
        # 3. Start over with a new socket if the sidecar has been silent for too long.
        self._rebuild_if_silent(peers, now)

    def _on_message(self, message: Message, peers: dict[int, Peer]) -> None:
        self.unanswered_since_ns = None
        peer = peers.get(getattr(message, "stream", -1))
        if peer is None:
            return
        peer.heard_ns = self._clock.monotonic_ns()
        self._tell_notice(getattr(message, "notice", ""))
        match message:
            case Welcome():
                peer.stream.on_welcome(message)
                peer.refusal = ""
            case Ack():
                self._on_released(peer, peer.stream.on_ack(message))
            case Nack():
                self._note_refusal(peer, message, is_news=peer.stream.on_nack(message))
            case FinAck():
                peer.stream.on_fin_ack(message)

    def _tell_notice(self, notice: str) -> None:
        """Log a notice of the sidecar for the person who runs this process, once."""
        if notice and notice not in self._told and len(self._told) < NOTICES_MAX:
            self._told.add(notice)
            log.warning("%s", clean(notice, 300))

    def _note_refusal(self, peer: Peer, message: Nack, is_news: bool) -> None:
        if message.seq >= 0:
            if is_news:
                self._on_refused(peer)
        elif message.reason.startswith("source ") and WORKER in peer.stream.source:
            # An older sidecar refuses worker sources. Send as the main source instead:
            # the session still tells the two processes apart.
            log.info("source %s is sent as %s", peer.stream.source, main_source(peer.stream.source))
            peer.stream.source = main_source(peer.stream.source)
            peer.asked_ns = 0
        elif message.reason != peer.refusal:
            peer.refusal = message.reason
            log.info("stream of run %s: %s", peer.stream.run_id, clean(message.reason, 300))

    def _ask(self, peer: Peer, now: int) -> None:
        """Send HELLO if due: to open, because acknowledgements are overdue, or as a keepalive."""
        stream, since = peer.stream, now - peer.asked_ns
        if stream.state in (State.CLOSED, State.ASKED, State.FINISHING):
            due = since >= HELLO_INTERVAL_NS
        elif stream.unacknowledged:
            due = min(since, now - peer.heard_ns) >= ACK_OVERDUE_NS
        else:
            due = since >= KEEPALIVE_NS
        if due and stream.state is not State.DONE:
            if stream.state is State.FINISHING:
                stream.lost()
            if self._connection.send(stream.hello()):
                self._expect_answer(now)
                peer.asked_ns = now

    def _send_frames(self, peer: Peer) -> None:
        for message in peer.stream.sendable():
            if not self._connection.send(message):
                break
            self._expect_answer(self._clock.monotonic_ns())

    def _finish(self, peer: Peer, now: int) -> None:
        """Send FIN if the stream is complete and all its frames are acknowledged."""
        stream = peer.stream
        if peer.is_complete and stream.state is State.OPEN and not stream.frames:
            if not stream.is_told:
                stream.lost()  # only a HELLO can report that the last events are missing
            elif self._connection.send(stream.fin()):
                self._expect_answer(now)
                peer.asked_ns = now

    def _expect_answer(self, now: int) -> None:
        if self.unanswered_since_ns is None:
            self.unanswered_since_ns = now

    def _rebuild_if_silent(self, peers: list[Peer], now: int) -> None:
        since = self.unanswered_since_ns
        if since is not None and now - since > SILENCE_NS:
            self._connection.rebuild()
            self.unanswered_since_ns = None
            for peer in peers:
                peer.stream.lost()


def adopted_peers(directory: Path, first_number: int) -> list[Peer]:
    """Adopt the spools that ended emitters left in a directory, each as a stream of its own.

    Raises:
        OSError: the directory can't be read.
    """
    return [
        Peer(_stream_of(spool, number), spool, is_complete=True)
        for number, spool in enumerate(adopt_orphans(directory), first_number)
    ]


def _stream_of(spool: Spool, number: int) -> OutgoingStream:
    entry = spool.entry
    stream = OutgoingStream(number, entry.run_id, entry.session, entry.source, is_late=True)
    for header, at in spool.frames():
        load = loader(spool, at, header.payload_length)
        stream.add_frame(Frame(header.base_seq, header.count, header.payload_length, 0, load, True))
    return stream


def loader(spool: Spool, at: int, size: int) -> Callable[[], bytes]:
    """Return a function that loads a frame from a spool; it raises FrameLost if it can't."""

    def load() -> bytes:
        try:
            return spool.load(at, size)
        except SpoolDamaged as exc:
            raise FrameLost(str(exc)) from exc

    return load
