"""Options: limits and intervals of one emitter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EmitterOptions:
    """Limits and intervals of one emitter; the defaults are those of the product."""

    queue_max_bytes: int = 64 * 1024 * 1024
    """Bound on the queue, the backlog and the frames in memory, together."""
    flush_interval_s: float = 0.01
    spool_dir: Path | None = None
    spool_after_s: float = 0.1
    """Age at which a frame that is not acknowledged goes into the spool."""
    spool_max_bytes: int = 1024 * 1024 * 1024
    spool_max_frames: int = 1_000_000
    """Each takes about 200 bytes of memory, wherever its body is."""
    silence_s: float = 8.0
    """If a message that needs an answer gets none for so long, the socket is rebuilt."""
    series_interval_s: float = 30.0
    """Time between two events with the emitter's own statistics, while they change."""

    @property
    def spool_after_ns(self) -> int:
        return int(self.spool_after_s * 1e9)
