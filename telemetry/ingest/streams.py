"""Streams: the state of each stream of each peer, and the table that has them all.

A stream is known twice: to the reading thread, which answers its peer without a disk, and to
the journal thread, which appends its events. Each thread has a table of its own; what crosses
over goes through the inbox, and through the answers.

Not thread-safe: the thread that made a table owns it, and the streams in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from shared.ids import StreamId, host_of
from shared.wire import Hello
from telemetry.sessions import MAIN_SOURCE, is_worker

SILENT_NS: Final = 15_000_000_000
"""Silence, of three keepalives, after which a stream is not live."""

STREAM_OVER_NS: Final = 30_000_000_000
"""Silence after which a stream does not keep its run from ending."""

IDLE_OVER_NS: Final = 300_000_000_000
"""The same for a stream that sent only keepalives, and no event, for so long."""

OWN_STREAM: Final = 1
"""Number of an emitter's own stream; streams of spools that it found are higher."""

STREAMS_MAX: Final = 20_000
PEER_STREAMS_MAX: Final = 2_000

StreamKey = tuple[bytes, int]
"""The peer, and the number that it gave its stream."""


@dataclass
class Stream:
    """State of a stream that either thread keeps."""

    peer: bytes
    number: int
    id: StreamId
    is_late: bool
    """True for the spool of a session that is over, sent by another process."""
    next_seq: int
    """Number of the next event to take."""
    durable_seq: int
    """Number of the last event that is on disk; -1 before the first."""
    heard_ns: int

    @property
    def key(self) -> StreamKey:
        return self.peer, self.number

    def is_asked_for_by(self, hello: Hello) -> bool:
        """Return True if this HELLO speaks of the stream as it was opened."""
        return self.id == hello.stream_id and (self.is_late or not hello.late)


@dataclass
class ReceivedStream(Stream):
    """A stream as the reading thread knows it, from the WELCOME on; next_seq is not queued yet."""

    is_behind: bool = False
    """True after a frame of it was thrown away, until its peer was asked to send again."""


@dataclass
class IncomingStream(Stream):
    """A stream as the journal thread knows it; next_seq is not in the journal yet."""

    fin_seq: int | None = None
    is_finished: bool = False
    spoke_ns: int = 0
    """Monotonic time of its last events; keepalives do not count."""
    rival: IncomingStream | None = None
    """A main session that began while this one had not ended; this one may be dead."""
    notice: str = ""
    """Text for the user of its producer, sent with the next answer."""
    asked_ns: int = 0
    refused_at: int | None = None
    """next_seq when a frame was refused whole. The next frame tells how many events it had."""
    unsynced: set[str] = field(default_factory=set)
    """Runs whose journals hold frames of it that are not on disk yet."""

    @property
    def is_main(self) -> bool:
        """True for a main session of a live producer, not for the spool of a former one."""
        return self.id.source == MAIN_SOURCE and not self.is_late

    @property
    def is_hardware(self) -> bool:
        return bool(host_of(self.id.source))

    def is_over(self, now: int) -> bool:
        """Return True if the end of its run need not wait for this stream."""
        if self.is_finished or now - self.heard_ns > STREAM_OVER_NS:
            return True
        # A worker is waited for less long: only its last events may be missing.
        patience_ns = STREAM_OVER_NS if is_worker(self.id.source) else IDLE_OVER_NS
        return now - self.spoke_ns > patience_ns

    def is_live(self, now: int) -> bool:
        """Return True if its producer was heard lately and has not ended the stream."""
        return not self.is_finished and now - self.heard_ns < SILENT_NS


class TooManyStreams(Exception):
    """Raised when no more streams may be open, of one peer or altogether."""


S = TypeVar("S", bound=Stream)


class StreamTable(Generic[S]):
    """All streams of a thread, by their peers' numbers and by run."""

    def __init__(
        self, streams_max: int = STREAMS_MAX, peer_streams_max: int = PEER_STREAMS_MAX
    ) -> None:
        self._streams_max = streams_max
        self._peer_streams_max = peer_streams_max
        self._by_key: dict[StreamKey, S] = {}
        self._by_run: dict[str, dict[StreamKey, S]] = {}
        self._of_peer: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[S]:
        return iter(list(self._by_key.values()))

    def get(self, key: StreamKey) -> S | None:
        return self._by_key.get(key)

    def of_run(self, run_id: str) -> list[S]:
        return list(self._by_run.get(run_id, {}).values())

    def check_room(self, peer: bytes) -> None:
        """Refuse another stream of this peer where there are too many.

        Raises:
            TooManyStreams: of the peer, or altogether.
        """
        of_peer = self._of_peer.get(peer, 0)
        if len(self._by_key) >= self._streams_max or of_peer >= self._peer_streams_max:
            raise TooManyStreams("wait: too many streams are open")

    def add(self, stream: S) -> None:
        """Add a stream, in the place of one of the same peer and number."""
        self.remove(stream.key)
        self._by_key[stream.key] = stream
        self._by_run.setdefault(stream.id.run_id, {})[stream.key] = stream
        self._of_peer[stream.peer] += 1

    def remove(self, key: StreamKey) -> None:
        stream = self._by_key.pop(key, None)
        if stream is None:
            return
        of_run = self._by_run[stream.id.run_id]
        del of_run[key]
        if not of_run:
            del self._by_run[stream.id.run_id]
        self._of_peer[stream.peer] -= 1
        if not self._of_peer[stream.peer]:
            del self._of_peer[stream.peer]
