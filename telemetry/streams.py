"""Streams: what the sidecar knows of each stream of each peer.

Never: kept longer than somebody may still speak of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from shared.events import HARDWARE

SILENT_NS: Final = 15_000_000_000
"""A stream that said nothing for so long (three keepalives) is not live."""

OWN_STREAM: Final = 1
"""What an emitter numbers its own stream; those of spools that it found are higher."""

StreamKey = tuple[bytes, int]
"""The peer, and the number that it gave its stream."""


@dataclass
class IncomingStream:
    """One stream of one peer, as far as it has come."""

    peer: bytes
    number: int
    run_id: str
    session: str
    source: str
    next_seq: int
    durable_seq: int
    heard_ns: int
    fin_seq: int | None = None
    is_finished: bool = False
    is_late: bool = False
    """The rest of a session that is over, sent by the one that came after it."""
    asked_ns: int = 0
    refused_at: int | None = None
    """next_seq when a frame was refused whole: what comes next tells how many events it had."""
    unsynced: set[str] = field(default_factory=set)
    """Runs whose journals hold frames of it that are not on disk yet."""

    @property
    def is_hardware(self) -> bool:
        return self.source.startswith(HARDWARE)

    def is_live(self, now: int) -> bool:
        """Its producer has said something lately, and not that it ends."""
        return not self.is_finished and now - self.heard_ns < SILENT_NS
