"""Fakes with real behaviour: a clock that stands still, and a sidecar on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from shared.closing import Closing
from shared.events import DecodeError, Envelope, Event, decode_envelope, split_events
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
    decode,
    encode,
)

Key = tuple[str, str, str]
"""run_id, session, source"""

CREDIT_BYTES = 4 * 1024 * 1024


class ManualClock:
    """Time as the test says it is."""

    def __init__(self, wall_ns: int = 10**18, mono_ns: int = 10**15) -> None:
        self.wall = wall_ns
        self.mono = mono_ns

    def wall_ns(self) -> int:
        return self.wall

    def monotonic_ns(self) -> int:
        return self.mono

    def advance(self, seconds: float) -> None:
        self.wall += round(seconds * 1e9)
        self.mono += round(seconds * 1e9)


@dataclass
class Disk:
    """What a sidecar has made durable: it outlives the sidecar."""

    events: dict[Key, list[bytes]] = field(default_factory=dict)
    lost: dict[Key, int] = field(default_factory=dict)
    """Events that an emitter said it has not any more."""
    finished: set[Key] = field(default_factory=set)

    def next_seq(self, key: Key) -> int:
        return len(self.events.get(key, [])) + self.lost.get(key, 0)

    def envelopes(self, key: Key) -> list[Envelope]:
        return [decode_envelope(data) for data in self.events.get(key, [])]

    def typed(self, key: Key) -> list[Event | None]:
        return [envelope.event() for envelope in self.envelopes(key)]

    def key_of(self, run_id: str) -> Key:
        """The only stream of a run."""
        (key,) = [key for key in self.events if key[0] == run_id]
        return key


class FakeSidecar(Closing):
    """The sidecar's half of the wire, in a thread: HELLO, DATA, FIN and their answers.

    is_mute: takes everything in and answers nothing. is_syncing: makes durable
    what came; while it is not, frames are received and not acknowledged, and
    close() forgets them as a kill would. refused: runs whose streams it refuses.
    """

    def __init__(self, endpoint: str, disk: Disk | None = None) -> None:
        self.disk = disk or Disk()
        self.is_mute = False
        self.is_syncing = True
        self.refused: set[str] = set()
        self.rejected_seqs: set[int] = set()
        self.frames_repeated = 0
        self.malformed: list[str] = []
        self.peers: set[bytes] = set()
        """Sockets that sent something; a rebuilt one is another."""
        self._pending: dict[Key, list[bytes]] = {}
        self._streams: dict[tuple[bytes, int], Key] = {}
        self._news = threading.Condition()
        self._is_closed = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint)
        self._thread = threading.Thread(target=self._run, name="fake-sidecar", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Die at once: what is not durable is forgotten, and nobody is told."""
        if self._is_closed.is_set():
            return
        self._is_closed.set()
        self._thread.join(10)
        self._socket.close(0)
        self._context.term()

    @property
    def undurable_events(self) -> int:
        """Events received and neither durable nor acknowledged."""
        return sum(len(events) for events in self._pending.values())

    def wait_for(self, is_so: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait until something that depends on what was received is so."""
        with self._news:
            assert self._news.wait_for(is_so, timeout_s), "the sidecar waited in vain"

    def wait_for_events(self, run_id: str, count: int, timeout_s: float = 20.0) -> None:
        """Wait until a run has so many durable events, in all of its streams."""
        self.wait_for(lambda: self._count(run_id) >= count, timeout_s)

    def _count(self, run_id: str) -> int:
        return sum(len(events) for key, events in self.disk.events.items() if key[0] == run_id)

    def _run(self) -> None:
        while not self._is_closed.is_set():
            if self._socket.poll(2):
                self._receive()
            if self.is_syncing and not self.is_mute:
                self._sync()
            with self._news:
                self._news.notify_all()

    def _receive(self) -> None:
        peer, *frames = self._socket.recv_multipart()
        self.peers.add(peer)
        try:
            message = decode(frames)
        except DecodeError as exc:
            self.malformed.append(str(exc))
            return
        if not self.is_mute:
            for answer in self._answers(peer, message):
                self._send(peer, answer)

    def _answers(self, peer: bytes, message: Message) -> list[Message]:
        if isinstance(message, Hello):
            return [self._on_hello(peer, message)]
        key = self._streams.get((peer, getattr(message, "stream", -1)))
        if key is None:
            return [Nack(getattr(message, "stream", 0), WHOLE_STREAM, "unknown stream")]
        if isinstance(message, Data):
            return self._on_data(key, message)
        if isinstance(message, Fin):
            return self._on_fin(key, message)
        return []

    def _on_hello(self, peer: bytes, hello: Hello) -> Message:
        key = (hello.run_id, hello.session, hello.source)
        if hello.run_id in self.refused:
            return Nack(hello.stream, WHOLE_STREAM, "refused")
        self._streams[peer, hello.stream] = key
        hole = hello.first_seq - self._next_seq(key)
        if hole > 0:
            self.disk.lost[key] = self.disk.lost.get(key, 0) + hole
        return Welcome(hello.stream, self._next_seq(key), CREDIT_BYTES)

    def _on_data(self, key: Key, data: Data) -> list[Message]:
        events = split_events(data.events)
        known = self._next_seq(key) - data.base_seq
        if known < 0:
            return [Welcome(data.stream, self._next_seq(key), CREDIT_BYTES)]
        if known >= len(events):
            self.frames_repeated += 1
            return [Ack(data.stream, self.disk.next_seq(key) - 1, CREDIT_BYTES)]
        self._pending.setdefault(key, []).extend(events[known:])
        rejected = sorted(self.rejected_seqs & set(range(data.base_seq, data.base_seq + 256)))
        return [Nack(data.stream, seq, "bad event") for seq in rejected]

    def _on_fin(self, key: Key, fin: Fin) -> list[Message]:
        if self.disk.next_seq(key) < fin.next_seq:
            return [Welcome(fin.stream, self._next_seq(key), CREDIT_BYTES)]
        self.disk.finished.add(key)
        return [FinAck(fin.stream)]

    def _sync(self) -> None:
        for key, events in list(self._pending.items()):
            self.disk.events.setdefault(key, []).extend(events)
            del self._pending[key]
            for (peer, number), of in self._streams.items():
                if of == key:
                    self._send(peer, Ack(number, self.disk.next_seq(key) - 1, CREDIT_BYTES))

    def _next_seq(self, key: Key) -> int:
        return self.disk.next_seq(key) + len(self._pending.get(key, []))

    def _send(self, peer: bytes, message: Message) -> None:
        self._socket.send_multipart([peer, *encode(message)])
