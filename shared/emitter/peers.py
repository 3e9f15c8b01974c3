"""Peers: the streams that one sender talks about, its own and those of adopted spools.

In: a spool directory with the files that ended emitters left.
Out: a stream for each of them, with the state of the exchange about it.
Never: touches a spool whose emitter lives, or deletes one before its stream is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.emitter.frames import Frame, FrameLost
from shared.emitter.spool import Spool, SpoolDamaged, adopt_orphans
from shared.emitter.stream import OutgoingStream


@dataclass
class Peer:
    """A stream, and the state of the exchange with the sidecar about it."""

    stream: OutgoingStream
    spool: Spool | None = None
    """Spool that the frames of an adopted stream are in."""
    is_complete: bool = False
    """True if no frame will be added: once all are acknowledged, FIN is sent."""

    asked_ns: int = 0
    """Monotonic time of the last HELLO or FIN."""
    heard_ns: int = 0
    """Monotonic time of the last message about this stream."""
    refusal: str = ""
    """Reason of the last NACK of the whole stream; empty after a WELCOME."""


def adopted_peers(directory: Path, first_number: int) -> list[Peer]:
    """Adopt the spools that ended emitters left in a directory, each as a stream of its own.

    Raises:
        OSError: the directory can't be read.
    """
    return [
        Peer(_stream_of(spool, number), spool, is_complete=True)
        for number, spool in enumerate(adopt_orphans(directory), first_number)
    ]


def forget_finished(peers: list[Peer]) -> None:
    """Remove the peers whose streams are done, and delete their spools."""
    for peer in [peer for peer in peers if peer.stream.is_done]:
        peers.remove(peer)
        if peer.spool is not None:
            peer.spool.close(delete=True)


def _stream_of(spool: Spool, number: int) -> OutgoingStream:
    stream = OutgoingStream(number, *spool.stream_id, is_late=True)
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
