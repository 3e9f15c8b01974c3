"""Handler: the messages that peers send, each with its answers.

In: messages of the wire, each with the peer it came from.
Out: the messages to answer with at once.
Never: fails on a message that only a sidecar sends: it is counted.

Both threads of ingest handle the same three messages: the reading thread from memory, the
journal thread with the journals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter

from shared.wire import WHOLE_STREAM, Data, Fin, Hello, Message, Nack

Reply = tuple[bytes, Message]
"""A peer, and the message to send to it."""


class Handler(ABC):
    """Sorts messages by their kind. Not thread-safe: one thread owns it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Counters of /metrics, by name."""

    def handle(self, peer: bytes, message: Message) -> list[Reply]:
        """Take in one message of a peer, and return what can be answered at once."""
        match message:
            case Data():
                answers = self._on_data(peer, message)
            case Hello():
                answers = self._on_hello(peer, message)
            case Fin():
                answers = self._on_fin(peer, message)
            case _:
                self.counts["unexpected_messages_total"] += 1
                return []
        return [(peer, answer) for answer in answers]

    @abstractmethod
    def _on_hello(self, peer: bytes, hello: Hello) -> list[Message]:
        """Open a stream, or find it again."""

    @abstractmethod
    def _on_data(self, peer: bytes, data: Data) -> list[Message]:
        """Take a frame of events."""

    @abstractmethod
    def _on_fin(self, peer: bytes, fin: Fin) -> list[Message]:
        """Note that a stream ends."""


def unknown_stream(number: int) -> list[Message]:
    """Return the answer to a message of an unknown stream: its peer then opens it anew."""
    return [Nack(number, WHOLE_STREAM, "unknown stream")]
