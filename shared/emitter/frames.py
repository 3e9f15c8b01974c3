"""Frames: the numbered events of a stream that are kept until they are acknowledged.

In: packed events in frames, the newest at the end.
Out: the frames from the oldest on, each in memory or in the spool.
Never: changes the boundaries of a frame, or touches a file: a frame knows how to load itself.

Not thread-safe: the sender thread owns it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

FRAME_OVERHEAD_BYTES: Final = 400
"""Memory that a frame takes beside its body."""


class FrameLost(Exception):
    """Error: a frame can't be loaded from the spool; its events are lost."""


@dataclass(slots=True)
class Frame:
    """Events that are sent together, always on these boundaries.

    load returns the packed array, from memory or from the spool, or raises
    FrameLost.
    """

    base_seq: int
    count: int
    size: int
    framed_ns: int
    load: Callable[[], bytes]
    is_spooled: bool = False

    @property
    def next_seq(self) -> int:
        return self.base_seq + self.count


class Frames:
    """Frames in order: the oldest may be in the spool, and the newest are in memory."""

    def __init__(self) -> None:
        self.in_memory: deque[Frame] = deque()
        """Frames that are not in the spool; they are the newest ones."""
        self.memory_bytes = 0
        """Memory that the frames in in_memory take."""
        self.spooled_events = 0
        """Number of events in frames that are in the spool."""
        self._all: deque[Frame] = deque()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._all)

    def __getitem__(self, index: int) -> Frame:
        return self._all[index]

    def append(self, frame: Frame) -> None:
        self._all.append(frame)
        if frame.is_spooled:
            self.spooled_events += frame.count
        else:
            self.in_memory.append(frame)
            self.memory_bytes += frame.size + FRAME_OVERHEAD_BYTES

    def moved_to_spool(self, load: Callable[[], bytes]) -> None:
        """Record that the oldest frame in memory is now in the spool, and free its memory."""
        frame = self.in_memory.popleft()
        frame.load = load
        frame.is_spooled = True
        self.memory_bytes -= frame.size + FRAME_OVERHEAD_BYTES
        self.spooled_events += frame.count

    def pop_oldest(self) -> Frame:
        """Remove the oldest frame, and return it."""
        frame = self._all.popleft()
        if frame.is_spooled:
            self.spooled_events -= frame.count
        else:
            self.in_memory.popleft()
            self.memory_bytes -= frame.size + FRAME_OVERHEAD_BYTES
        return frame

    def remove_spooled(self, index: int) -> Frame:
        """Remove the frame at an index, which is in the spool, and return it."""
        frame = self._all[index]
        del self._all[index]
        self.spooled_events -= frame.count
        return frame
