"""Streams: what the sidecar knows of each stream of each peer.

Never: kept longer than somebody may still speak of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from shared.events import HARDWARE
from shared.wire import Hello
from telemetry.sessions import MAIN_SOURCE, is_worker

SILENT_NS: Final = 15_000_000_000
"""A stream that said nothing for so long (three keepalives) is not live."""

STREAM_OVER_NS: Final = 30_000_000_000
"""A stream that was silent for so long does not keep its run from ending."""

IDLE_OVER_NS: Final = 300_000_000_000
"""Nor does one that brought no event for so long, and only says that it lives."""

OWN_STREAM: Final = 1
"""What an emitter numbers its own stream; those of spools that it found are higher."""

STREAMS_MAX: Final = 20_000
PEER_STREAMS_MAX: Final = 2_000

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
    """The rest of a session that is over, sent by somebody else."""
    spoke_ns: int = 0
    """When it last brought events: a keepalive is none."""
    rival: IncomingStream | None = None
    """A main session that began while this one had not ended. Perhaps this one is dead."""
    notice: str = ""
    """What its producer should tell its user, with the next answer."""
    asked_ns: int = 0
    refused_at: int | None = None
    """next_seq when a frame was refused whole: what comes next tells how many events it had."""
    unsynced: set[str] = field(default_factory=set)
    """Runs whose journals hold frames of it that are not on disk yet."""

    @property
    def key(self) -> StreamKey:
        return self.peer, self.number

    def is_asked_for_by(self, hello: Hello) -> bool:
        """True if this HELLO speaks of the stream as it was opened."""
        asked = hello.run_id, hello.session, hello.source
        is_same = (self.run_id, self.session, self.source) == asked
        return is_same and (self.is_late or not hello.late)

    @property
    def is_main(self) -> bool:
        """True for a live main session, not for what somebody sends of a former one."""
        return self.source == MAIN_SOURCE and not self.is_late

    @property
    def is_hardware(self) -> bool:
        return self.source.startswith(HARDWARE)

    def is_over(self, now: int) -> bool:
        """True if the end of its run need not wait for this stream."""
        if self.is_finished or now - self.heard_ns > STREAM_OVER_NS:
            return True
        # A worker never decides about the end of its run: it only may say its last events.
        patience_ns = STREAM_OVER_NS if is_worker(self.source) else IDLE_OVER_NS
        return now - self.spoke_ns > patience_ns

    def is_live(self, now: int) -> bool:
        """True if its producer has said something lately, and not that it ends."""
        return not self.is_finished and now - self.heard_ns < SILENT_NS


class TooManyStreams(Exception):
    """There is no place for another stream now."""


class StreamTable:
    """All streams, by their peers' numbers and by run. Not thread-safe."""

    def __init__(self) -> None:
        self._by_key: dict[StreamKey, IncomingStream] = {}
        self._by_run: dict[str, dict[StreamKey, IncomingStream]] = {}
        self._of_peer: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[IncomingStream]:
        return iter(list(self._by_key.values()))

    def get(self, key: StreamKey) -> IncomingStream | None:
        return self._by_key.get(key)

    def of_run(self, run_id: str) -> list[IncomingStream]:
        return list(self._by_run.get(run_id, {}).values())

    def check_room(self, peer: bytes) -> None:
        """Refuse another stream of this peer where there are too many.

        Raises:
            TooManyStreams: of the peer, or altogether.
        """
        if len(self._by_key) >= STREAMS_MAX or self._of_peer.get(peer, 0) >= PEER_STREAMS_MAX:
            raise TooManyStreams("wait: too many streams are open")

    def add(self, stream: IncomingStream) -> None:
        """Add a stream, in the place of one of the same peer and number."""
        self.remove(stream.key)
        self._by_key[stream.key] = stream
        self._by_run.setdefault(stream.run_id, {})[stream.key] = stream
        self._of_peer[stream.peer] += 1

    def remove(self, key: StreamKey) -> None:
        stream = self._by_key.pop(key, None)
        if stream is None:
            return
        of_run = self._by_run[stream.run_id]
        del of_run[key]
        if not of_run:
            del self._by_run[stream.run_id]
        self._of_peer[stream.peer] -= 1
        if not self._of_peer[stream.peer]:
            del self._of_peer[stream.peer]
