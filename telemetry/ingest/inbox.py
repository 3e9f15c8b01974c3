"""Inbox: the bounded queue of messages between the reading and the journal thread.

In: messages with their peers, from the reading thread, which never waits here.
Out: the same messages to the journal thread, openings of streams first.
Never: holds more than a bound of bytes, altogether and of each peer.

An opening may have to wait for a disk, so openings have a lane of their own. They are taken
one at a time, of each peer in turn, and frames do not wait behind them.

Thread-safe: one thread puts, one takes.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from typing import Final

from shared.wire import Hello, Message

QUEUE_MAX_BYTES: Final = 16 * 1024 * 1024
PEER_MAX_BYTES: Final = 5 * 1024 * 1024
"""Bound for one peer, so that there is room for others however much it sends."""

CREDIT_MAX_BYTES: Final = 4 * 1024 * 1024
"""Bytes that one stream may have unacknowledged; less than the bound for its peer."""

CREDITS_BYTES: Final = 12 * 1024 * 1024
"""Bytes that all streams together may; less than the queue, since each may send one frame
without credit."""

MESSAGE_OVERHEAD_BYTES: Final = 400
"""Memory of a message beside its body."""

OPENINGS_MAX: Final = 2000
PEER_OPENINGS_MAX: Final = 32

Item = tuple[bytes, Message]


class Inbox:
    """A bounded queue of frames, and a bounded lane of openings."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._frames: deque[tuple[bytes, Message, int]] = deque()
        self._bytes = 0
        self._peer_bytes: Counter[bytes] = Counter()
        self._openings: OrderedDict[bytes, dict[int, Hello]] = OrderedDict()
        self._opening_count = 0

    @property
    def bytes_held(self) -> int:
        return self._bytes

    def has_room(self, peer: bytes, size: int) -> bool:
        """Return True if a frame of this size may be put.

        A peer with nothing in the queue may put a frame of any size that fits the whole.
        """
        size += MESSAGE_OVERHEAD_BYTES
        held = self._peer_bytes.get(peer, 0)
        is_fair = not held or held + size <= PEER_MAX_BYTES
        return is_fair and self._bytes + size <= QUEUE_MAX_BYTES

    def put(self, peer: bytes, message: Message, size: int) -> bool:
        """Add a message behind those of its peer; return False where there is no room."""
        with self._news:
            if not self.has_room(peer, size):
                return False
            size += MESSAGE_OVERHEAD_BYTES
            self._frames.append((peer, message, size))
            self._bytes += size
            self._peer_bytes[peer] += size
            self._news.notify()
        return True

    def put_in_line(self, peer: bytes, message: Message) -> bool:
        """Add a message without a frame behind those of its peer."""
        return self.put(peer, message, 0)

    def holds_of(self, peer: bytes) -> bool:
        """Return True if messages of this peer are in the queue."""
        return peer in self._peer_bytes

    def put_opening(self, peer: bytes, hello: Hello) -> bool:
        """Add a HELLO that opens a stream; return False where too many wait already."""
        with self._news:
            waiting = self._openings.get(peer, {})
            is_repeated = hello.stream in waiting
            if not is_repeated and (
                len(waiting) >= PEER_OPENINGS_MAX or self._opening_count >= OPENINGS_MAX
            ):
                return False
            self._opening_count += not is_repeated
            waiting[hello.stream] = hello
            self._openings[peer] = waiting
            self._news.notify()
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait for a message at most timeout_s; return True if there is one."""
        with self._news:
            self._news.wait_for(lambda: self._frames or self._openings, timeout_s)
            return bool(self._frames or self._openings)

    def take(self, max_bytes: int) -> list[Item]:
        """Take the oldest frames, up to about so many bytes."""
        taken: list[Item] = []
        with self._news:
            while self._frames and max_bytes > 0:
                peer, message, size = self._frames.popleft()
                taken.append((peer, message))
                max_bytes -= size
                self._bytes -= size
                self._peer_bytes[peer] -= size
                if not self._peer_bytes[peer]:
                    del self._peer_bytes[peer]
        return taken

    def take_opening(self) -> Item | None:
        """Take one opening, of the peer whose turn it is; None where there is none."""
        with self._news:
            if not self._openings:
                return None
            peer, waiting = self._openings.popitem(last=False)
            hello = waiting.pop(next(iter(waiting)))
            self._opening_count -= 1
            if waiting:
                self._openings[peer] = waiting  # behind all others
            return peer, hello
