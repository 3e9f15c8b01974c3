"""Layout: the files of a journal, and the durable mark that says how much of it is on disk.

    DATA_DIR/runs/<run_id>/journal/
      00000000000000000000.seg …   segments, named by their first row number
      durable                      the durable mark, 28 bytes

    durable mark: first row of the segment u64 | offset in it u64 | next row u64 | crc32 u32

The mark is rewritten in one write after each sync of a segment, and is not synced
itself: if a power cut brings an older mark back, that is still true.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

MARK_NAME: Final = "durable"
ROW_MAX: Final = 1 << 62
"""Largest row number that a mark may name; a larger one means a damaged mark."""

_SEGMENT_NAME: Final = re.compile(r"(\d{20})\.seg")
_MARK: Final = struct.Struct("<QQQ")
_CRC: Final = struct.Struct("<I")


class Mark(NamedTuple):
    """Place in a journal up to which every byte is on disk."""

    segment: int
    """First row of the segment that is being written."""

    offset: int
    next_row: int


class SegmentFile(NamedTuple):
    first_row: int
    path: Path


def segment_path(directory: Path, first_row: int) -> Path:
    return directory / f"{first_row:020d}.seg"


def segments(directory: Path) -> list[SegmentFile]:
    """Return the segment files of a journal, in the order of their rows."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in directory.iterdir():
            if match := _SEGMENT_NAME.fullmatch(path.name):
                found.append(SegmentFile(int(match[1]), path))
    return sorted(found)


def encode_mark(mark: Mark) -> bytes:
    body = _MARK.pack(*mark)
    return body + _CRC.pack(zlib.crc32(body))


def read_mark(directory: Path) -> Mark | None:
    """Return the published mark; None if there is none, or only a damaged one.

    The writer may be rewriting the mark at this moment, so a damaged one is read again.
    """
    for _ in range(100):
        try:
            data = (directory / MARK_NAME).read_bytes()
        except OSError:
            return None
        if (mark := decode_mark(data)) is not None:
            return mark
    return None


def decode_mark(data: bytes) -> Mark | None:
    """Decode a mark; return None if the bytes are not a valid one."""
    if len(data) != _MARK.size + _CRC.size:
        return None
    body, (crc,) = data[: _MARK.size], _CRC.unpack_from(data, _MARK.size)
    mark = Mark(*_MARK.unpack(body))
    is_sensible = mark.segment <= mark.next_row <= ROW_MAX
    return mark if crc == zlib.crc32(body) and is_sensible else None
