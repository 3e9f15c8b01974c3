"""Identity: the uuid of a journal, different even from others with the same run id.

In: the directory of a journal.
Out: its uuid, which every segment's header repeats.
Never: reads more than a header.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from shared.record import CorruptRecord, decode_segment_header
from telemetry.journal.layout import segments

FIRST_READ_BYTES: Final = 64 * 1024
HEADER_MAX_BYTES: Final = 64 * 1024 * 1024


def journal_uuid(directory: Path) -> str:
    """Return the journal's uuid as 32 hexadecimal digits; empty if no header can be read.

    Raises:
        OSError: the directory can't be read.
    """
    for segment in reversed(segments(directory)):
        if found := _uuid_in(segment.path):
            return found
    return ""


def _uuid_in(path: Path) -> str:
    """Return the uuid in a segment's header; empty if the header can't be read.

    Reads more of the file until the header is whole: its stream table has no fixed size.
    """
    size = FIRST_READ_BYTES
    with path.open("rb") as file, contextlib.suppress(CorruptRecord):
        while size <= HEADER_MAX_BYTES:
            file.seek(0)
            data = file.read(size)
            header = decode_segment_header(memoryview(data))
            if header is not None:
                return header.journal_uuid.hex()
            if len(data) < size:
                break
            size *= 16
    return ""
