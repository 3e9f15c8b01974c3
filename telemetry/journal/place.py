"""Place: one record of a journal, found again without reading what lies before it.

In: a place that was noted while the journal was read.
Out: True if the same record is still there.
Never: changes a file, or raises for one that is gone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from shared.record import RECORD_HEADER_BYTES, CorruptRecord, decode_record_header
from telemetry.journal.layout import segment_path


class RecordPlace(NamedTuple):
    """Place of a record in a journal, and what tells it from another record at that place."""

    segment: int
    """First row of its segment."""

    offset: int
    row: int
    next_row: int
    payload_crc: int


def is_at(directory: Path, place: RecordPlace) -> bool:
    """Return True if a journal has this very record, whole, at its place."""
    try:
        fd = os.open(segment_path(directory, place.segment), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        header = decode_record_header(memoryview(os.pread(fd, RECORD_HEADER_BYTES, place.offset)))
        if header is None or place.offset + header.size > os.fstat(fd).st_size:
            return False
    except (OSError, OverflowError, CorruptRecord):
        return False
    finally:
        os.close(fd)
    found = header.row, header.next_row, header.payload_crc
    return found == (place.row, place.next_row, place.payload_crc)
