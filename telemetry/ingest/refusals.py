"""Refusals: what can't be recorded is kept in quarantine, counted, and logged once.

In: frames and events that were refused, streams that can't be opened, and gaps.
Out: files in `quarantine/` of a run, counters of /metrics, and log lines.
Never: fills the disk or the log: each kind is bounded.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Final

from shared.events import Gap
from telemetry.ingest.run import Run

log = logging.getLogger("telemetry.ingest.ingest")

FILES_MAX: Final = 1000
BYTES_MAX: Final = 64 * 1024 * 1024
"""Bounds of one run's quarantine: refused bytes must not fill the disk."""

GAP_LABEL_MAX: Final = 60
GAP_LABELS_MAX: Final = 200
REASONS_MAX: Final = 1000


class Refusals:
    """Keeps what was refused. Not thread-safe: the journal thread owns it."""

    def __init__(self, counts: Counter[str]) -> None:
        self.gaps: Counter[tuple[str, str]] = Counter()
        """Events that are missing, by kind and reason."""
        self._counts = counts
        self._logged: set[str] = set()
        """Reasons of refused streams that were logged already."""

    def count_gap(self, gap: Gap) -> None:
        """Count a Gap by kind and reason for /metrics, with a bounded number of labels."""
        for kind, count in gap.by_kind.items():
            key = kind[:GAP_LABEL_MAX], gap.reason[:GAP_LABEL_MAX]
            is_known = key in self.gaps or len(self.gaps) < GAP_LABELS_MAX
            self.gaps[key if is_known else ("other", "other")] += count

    def refuse_stream(self, reason: str) -> None:
        """Log a refusal once: a producer that is refused asks again twice a second."""
        self._counts["refused_streams_total"] += 1
        if reason in self._logged:
            return
        if len(self._logged) >= REASONS_MAX:
            self._logged.clear()
        self._logged.add(reason)
        log.warning("stream refused: %s", reason)

    def refuse_frame(
        self, run_id: str, run: Run | None, session: str, seq: int, data: bytes, reason: str
    ) -> None:
        """Put a frame into quarantine that is no array of events; run: None if it is not open."""
        self._counts["quarantined_frames_total"] += 1
        log.warning("frame of run %s refused: %s", run_id, reason)
        if run is not None:
            _keep(run.place.quarantine, f"{session}-{seq}.frame", data)

    def refuse_event(self, runs: list[Run], session: str, seq: int, data: bytes) -> None:
        """Put one event of a frame into quarantine, in every run that has the frame."""
        self._counts["quarantined_events_total"] += 1
        for run in runs:
            _keep(run.place.quarantine, f"{session}-{seq}.msgpack", data)


def _keep(directory: Path, name: str, data: bytes) -> None:
    """Save bytes under a name, if there is room for one more file; never raises for the disk.

    A symbolic link in the place of the directory or of the file is not followed.
    """
    with contextlib.suppress(OSError):
        directory.mkdir(exist_ok=True)
        sizes = [path.lstat().st_size for path in directory.iterdir()]
        if directory.is_symlink() or len(sizes) >= FILES_MAX:
            return
        if sum(sizes) + len(data) > BYTES_MAX:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(directory / name, flags, 0o644)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
