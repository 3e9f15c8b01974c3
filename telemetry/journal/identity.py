"""Identity: the uuid of a journal, different even from others with the same run id.

In: the directory of a journal.
Out: its uuid, which every segment's header repeats; where asked for, its streams.
Never: changes a file, or reads more than a header for the uuid alone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from shared.record import CorruptRecord, SegmentHeader, StreamEntry, decode_segment_header
from telemetry.journal.layout import SegmentFile, segments
from telemetry.journal.walk import Walked

FIRST_READ_BYTES: Final = 64 * 1024
HEADER_MAX_BYTES: Final = 64 * 1024 * 1024


def journal_uuid(directory: Path) -> str:
    """Return the journal's uuid as 32 hexadecimal digits; empty if no header can be read.

    Raises:
        OSError: the directory can't be read.
    """
    for segment in reversed(segments(directory)):
        with contextlib.suppress(CorruptRecord):
            return header_of(segment).journal_uuid.hex()
    return ""


def identify(directory: Path) -> tuple[bytes, dict[int, StreamEntry]]:
    """Return the uuid of a journal, and its streams with their last seqs.

    Raises:
        CorruptRecord: no segment has a header that can be read.
        OSError: the directory can't be read.
    """
    state = Walked()
    headless: list[SegmentFile] = []
    for segment in reversed(segments(directory)):
        data = segment.path.read_bytes()
        header = None
        with contextlib.suppress(CorruptRecord):
            header = decode_segment_header(memoryview(data))
        if header is None:
            headless.insert(0, segment)
            continue
        state.start(header)
        state.walk(data, header.size)
        for later in headless:
            state.walk_headless(later)
        state.add_closed(directory)
        return header.journal_uuid, state.closed | state.streams
    raise CorruptRecord(f"{directory}: no segment tells which journal this is")


def header_of(segment: SegmentFile) -> SegmentHeader:
    """Read the header of a segment.

    Raises:
        CorruptRecord: it is damaged or cut short.
        OSError: the file can't be read.
    """
    fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_header(fd)
    finally:
        os.close(fd)


def read_header(fd: int) -> SegmentHeader:
    """Read the header of an open segment: more and more of it, since its table has no fixed size.

    Raises:
        CorruptRecord: it is damaged, cut short or too long.
    """
    size = FIRST_READ_BYTES
    while size <= HEADER_MAX_BYTES:
        data = os.pread(fd, size, 0)
        header = decode_segment_header(memoryview(data))
        if header is not None:
            return header
        if len(data) < size:
            break
        size *= 4
    raise CorruptRecord("segment header is cut short")
