"""Spooling: moves the frames of a live stream from memory to its spool.

In: frames that have been in memory for too long.
Out: the same frames in a file, which a later process sends if this one can't.
Never: lets a frame go that the disk did not take; it stays in memory.
"""

from __future__ import annotations

from typing import Final

from shared.clock import Clock
from shared.emitter.frames import Frame
from shared.emitter.notices import Notices
from shared.emitter.options import EmitterOptions
from shared.emitter.peers import loader
from shared.emitter.spool import Spool, SpoolUnavailable
from shared.emitter.stream import OutgoingStream

RETRY_NS: Final = 5_000_000_000
"""Time after which a spool that could not be written is tried again."""


class Spooling:
    """The spool of one live stream, made when it is needed first. The sender thread owns it."""

    def __init__(
        self, stream: OutgoingStream, options: EmitterOptions, clock: Clock, notices: Notices
    ) -> None:
        self.spool: Spool | None = None
        self.written_ns = 0
        """Monotonic time of the last write to the spool."""
        self._stream = stream
        self._options = options
        self._clock = clock
        self._notices = notices
        self._retry_ns = 0

    def move_overdue(self, now: int, everything: bool = False) -> None:
        """Spool the frames that have been in memory for too long, the oldest first."""
        if self._options.spool_dir is None or now < self._retry_ns:
            return
        waiting, after_ns = self._stream.frames.in_memory, self._options.spool_after_ns
        while waiting and (everything or now - waiting[0].framed_ns >= after_ns):
            if not self._move(waiting[0]):
                return

    def move_all(self, now: int) -> None:
        """Spool all that is in memory, also if the disk refused a moment ago."""
        self._retry_ns = now
        self.move_overdue(now, everything=True)

    def clear_if_unneeded(self) -> None:
        """Empty the file if no frame is in it any more: all were acknowledged, or are lost."""
        if self.spool is not None and self.spool.size and not self._stream.frames.spooled_events:
            self.spool.clear()

    def close(self) -> None:
        """Close the file, and delete it if nothing is left to send. May be called twice."""
        if self.spool is not None:
            self.spool.close(delete=not self._stream.frames)

    def abandon(self) -> None:
        """Close the file in a forked child, so that its lock does not outlive the parent."""
        if self.spool is not None:
            self.spool.abandon()

    def _move(self, frame: Frame) -> bool:
        try:
            spool = self._open()
            body = frame.load()
            at = spool.append(frame.base_seq, frame.count, body)
        except SpoolUnavailable as exc:
            self._retry_ns = self._clock.monotonic_ns() + RETRY_NS
            self._notices.warn("spool", f"telemetry {exc}; events stay in memory")
            return False
        self._stream.moved_to_spool(loader(spool, at, len(body)))
        self.written_ns = self._clock.monotonic_ns()
        return True

    def _open(self) -> Spool:
        """Return the spool, made now if there is none.

        Raises:
            SpoolUnavailable: it can't be made, or is full.
        """
        options = self._options
        if self.spool is None:
            assert options.spool_dir is not None
            self.spool = Spool.create(options.spool_dir, *self._stream.id)
        is_full = self.spool.size > options.spool_max_bytes
        if is_full or self.spool.frame_count >= options.spool_max_frames:
            raise SpoolUnavailable(f"spool {self.spool.path}: full")
        return self.spool
