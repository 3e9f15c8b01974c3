"""Spools that ended emitters left, as streams of their own, until the sidecar has all of them."""

from __future__ import annotations

from pathlib import Path

from shared.emitter.peers import Peer, adopted_peers, forget_finished
from shared.emitter.spool import Spool
from shared.emitter.stream import OutgoingStream
from shared.wire import Ack, FinAck, Welcome


def test_an_orphan_is_sent_to_its_end_and_then_goes(tmp_path: Path) -> None:
    """Not before, and no other stream with it."""
    spool = Spool.create(tmp_path, "run", "session", "rank0")
    for seq, body in ((0, b"\x92\x01\x02"), (2, b"\x91\x03")):
        spool.append(seq, body[0] - 0x90, body)
    spool.close(delete=False)

    (orphan,) = peers = adopted_peers(tmp_path, 5)
    own = Peer(OutgoingStream(1, "run", "other", "rank0"))
    peers.append(own)

    assert orphan.is_complete and orphan.stream.number == 5 and orphan.stream.is_late
    assert [frame.is_spooled for frame in orphan.stream.frames] == [True, True]
    orphan.stream.hello()
    orphan.stream.on_welcome(Welcome(5, 0, 1000))
    assert [bytes(data.events) for data in orphan.stream.sendable()] == [
        b"\x92\x01\x02",
        b"\x91\x03",
    ]
    orphan.stream.on_ack(Ack(5, 2, 1000))
    assert orphan.stream.finish() is not None
    forget_finished(peers)
    assert peers == [orphan, own] and list(tmp_path.iterdir()) != []

    orphan.stream.on_fin_ack(FinAck(5))
    own.stream.hello()
    own.stream.on_welcome(Welcome(1, 0, 1000))
    forget_finished(peers)
    assert peers == [own] and list(tmp_path.iterdir()) == []

    own.stream.finish()
    own.stream.on_fin_ack(FinAck(1))
    forget_finished(peers)
    assert peers == []
