"""Conversation: the messages between a sender and the sidecar about several streams.

In: streams with frames to send.
Out: messages on the wire; each answer changes the state of its stream.
Never: makes a frame, or forgets one that is not acknowledged.

Not thread-safe: one thread owns it, with its connection.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from shared.clock import Clock
from shared.emitter.connection import Connection
from shared.emitter.notices import Notices
from shared.emitter.options import EmitterOptions
from shared.emitter.peers import Peer
from shared.ids import WORKER, main_source
from shared.text import clean
from shared.wire import WHOLE_STREAM, Ack, Fin, FinAck, Hello, Message, Nack, Welcome

log = logging.getLogger("telemetry.emitter")

HELLO_INTERVAL_NS: Final = 500_000_000
"""Time between two HELLOs, or two FINs, that are not answered yet."""
KEEPALIVE_NS: Final = 5_000_000_000
"""Time between two HELLOs of an idle stream, which only say that it is alive."""
ACK_OVERDUE_NS: Final = 2_000_000_000
"""If frames are unacknowledged for so long, a HELLO asks how far the sidecar is."""
NOTICES_MAX: Final = 10
"""Different notices of the sidecar that are logged."""


class Conversation:
    """The exchange of messages about many streams over one connection."""

    def __init__(
        self,
        connection: Connection,
        clock: Clock,
        silence_s: float = EmitterOptions.silence_s,
    ) -> None:
        self.unanswered_since_ns: int | None = None
        """Monotonic time since which an answer is due; None if none is."""
        self._connection = connection
        self._clock = clock
        self._silence_ns = int(silence_s * 1e9)
        self._notices = Notices(NOTICES_MAX)

    def poll(self, peers: Iterable[Peer]) -> None:
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
        self._log_notice(getattr(message, "notice", ""))
        match message:
            case Welcome():
                peer.stream.on_welcome(message)
                peer.refusal = ""
            case Ack():
                peer.stream.on_ack(message)
            case Nack():
                peer.stream.on_nack(message)
                if message.seq == WHOLE_STREAM:
                    self._on_refusal(peer, message.reason)
            case FinAck():
                peer.stream.on_fin_ack(message)

    def _log_notice(self, notice: str) -> None:
        """Log a notice of the sidecar for the person who runs this process, once."""
        if notice:
            self._notices.warn(notice, clean(notice, 300))

    def _on_refusal(self, peer: Peer, reason: str) -> None:
        """Log why the sidecar refuses the whole stream, unless another name is accepted."""
        source, run_id = peer.stream.id.source, peer.stream.id.run_id
        if reason.startswith("source ") and WORKER in source:
            # An older sidecar refuses worker sources. Send as the main source instead:
            # the session still tells the two processes apart.
            log.info("source %s is sent as %s", source, main_source(source))
            peer.stream.rename(main_source(source))
            peer.asked_ns = 0
        elif reason != peer.refusal:
            peer.refusal = reason
            log.info("stream of run %s: %s", run_id, clean(reason, 300))

    def _ask(self, peer: Peer, now: int) -> None:
        """Send HELLO if due: to open, because acknowledgements are overdue, or as a keepalive."""
        stream, since = peer.stream, now - peer.asked_ns
        if stream.is_answer_due:
            due = since >= HELLO_INTERVAL_NS
        elif stream.unacknowledged:
            due = min(since, now - peer.heard_ns) >= ACK_OVERDUE_NS
        else:
            due = since >= KEEPALIVE_NS
        if due and not stream.is_done:
            self._ask_with(peer, stream.hello(), now)

    def _send_frames(self, peer: Peer) -> None:
        for message in peer.stream.sendable():
            if not self._connection.send(message):
                break
            self._expect_answer(self._clock.monotonic_ns())

    def _finish(self, peer: Peer, now: int) -> None:
        """Send FIN if the stream is complete and all its frames are acknowledged."""
        if peer.is_complete and (fin := peer.stream.finish()) is not None:
            self._ask_with(peer, fin, now)

    def _ask_with(self, peer: Peer, message: Hello | Fin, now: int) -> None:
        if self._connection.send(message):
            self._expect_answer(now)
            peer.asked_ns = now

    def _expect_answer(self, now: int) -> None:
        if self.unanswered_since_ns is None:
            self.unanswered_since_ns = now

    def _rebuild_if_silent(self, peers: list[Peer], now: int) -> None:
        since = self.unanswered_since_ns
        if since is not None and now - since > self._silence_ns:
            self._connection.rebuild()
            self.unanswered_since_ns = None
            for peer in peers:
                peer.stream.lost()
