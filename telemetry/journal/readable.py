"""Readable: how much of a journal can be read, and if a process is writing it.

In: the journal directory of a run, live or finished.
Out: the mark up to which rows are on disk.
Never: changes a file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shared.locks import LocksUnsupported, is_locked
from shared.record import CorruptRecord, decode_segment_header
from telemetry.journal.layout import Mark, read_mark, segments
from telemetry.journal.walk import Walked


def readable_end(directory: Path) -> Mark | None:
    """Return the mark up to which a journal can be read; without a writer, recovery's mark.

    The mark itself is not synced with each sync: after a power cut, acknowledged rows may
    lie behind it until a writer opens the journal again.
    """
    mark = read_mark(directory)
    if mark is None or is_written(directory):
        return mark
    with contextlib.suppress(OSError, CorruptRecord):
        mark = max(mark, _end_of_last(directory, mark))
    # A writer that has started meanwhile publishes a mark of its own.
    return read_mark(directory) if is_written(directory) else mark


def _end_of_last(directory: Path, mark: Mark) -> Mark:
    """Return the mark that recovery would publish for the last segment, at least mark."""
    found = segments(directory)
    if not found:
        return mark
    segment = found[-1]
    is_marked = segment.first_row == mark.segment
    if segment.first_row < mark.segment or (
        is_marked and segment.path.stat().st_size <= mark.offset
    ):
        return mark
    fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        # Sync before reporting these rows: unsynced ones could be lost in a power cut, and
        # other events would then get their row numbers.
        os.fdatasync(fd)
    finally:
        os.close(fd)
    header = decode_segment_header(memoryview(data))
    if header is None:
        return mark
    state = Walked()
    state.start(header)
    promised = mark.offset if is_marked else 0
    end, _ = state.walk(data, header.size, promised)
    return Mark(segment.first_row, max(end, promised), max(state.next_row, mark.next_row))


def is_written(directory: Path) -> bool:
    """True if a writer has the journal open. False on a file system without locks."""
    try:
        return is_locked(directory)
    except LocksUnsupported:
        return False
