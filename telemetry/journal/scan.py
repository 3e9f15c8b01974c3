"""Scan: the records in a stretch of a segment, and the damage between them.

In: bytes, and the row number expected first.
Out: whole records and damage, in order.
Never: opens a file, or stops at the first bad byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from shared.record import (
    RECORD_HEADER_BYTES,
    RESYNC_MAX_BYTES,
    CorruptRecord,
    RecordHeader,
    decode_record_header,
    find_record,
    payload_of,
)

HEADER: Final = "damaged record"
PAYLOAD: Final = "damaged payload"
HOLE: Final = "missing rows"
TAIL: Final = "torn tail"
REST: Final = "unreadable rest"
SEGMENT: Final = "damaged segment"
CONTENT: Final = "undecodable events"


class Found(NamedTuple):
    """A whole record; offset and end are places in the buffer."""

    offset: int
    end: int
    header: RecordHeader
    payload: bytes


class Damage(NamedTuple):
    """A stretch of bytes that gives no events.

    Rows first_row to next_row - 1 are lost with it; next_row is None if that is unknown.
    """

    kind: str
    offset: int
    end: int
    first_row: int
    next_row: int | None
    detail: str = ""


def scan(buf: memoryview, expect_row: int, is_end: bool) -> Iterator[Found | Damage]:
    """Yield the records of buf, and the damage between them; expect_row should come first.

    With is_end, buf ends where the segment ends, and a record that is cut short is a
    torn tail. Otherwise the scan stops before a record, or a search for one, that may
    need bytes behind buf.
    """
    offset = 0
    while offset < len(buf):
        found = _next(buf, offset, expect_row, is_end)
        if found is None:
            return
        if isinstance(found, Found) and found.header.row > expect_row:
            yield Damage(HOLE, offset, offset, expect_row, found.header.row)
        yield found
        offset = found.end
        if isinstance(found, Found):
            expect_row = found.header.next_row
        elif found.next_row is not None:
            expect_row = found.next_row


def _next(buf: memoryview, offset: int, expect_row: int, is_end: bool) -> Found | Damage | None:
    try:
        header = decode_record_header(buf, offset)
        if header is not None and header.row < expect_row:
            raise CorruptRecord(f"row {header.row} comes again")
    except CorruptRecord as exc:
        return _resync(buf, offset, expect_row, is_end, str(exc))
    end = offset + (header.size if header else RECORD_HEADER_BYTES)
    if header is None or end > len(buf):
        return _cut_short(buf, offset, expect_row, is_end)
    try:
        payload = payload_of(buf, offset, header)
        assert payload is not None
    except CorruptRecord as exc:
        return Damage(PAYLOAD, offset, end, header.row, header.next_row, str(exc))
    return Found(offset, end, header, payload)


def _cut_short(buf: memoryview, offset: int, expect_row: int, is_end: bool) -> Damage | None:
    """Judge a record that is longer than buf: return its damage, or None if not read yet."""
    if not is_end:
        return None
    # A damaged length field looks the same: then whole records follow.
    at = find_record(buf, offset + 1, expect_row)
    if at is not None:
        return Damage(HEADER, offset, at, expect_row, _row_at(buf, at), "record is cut short")
    return Damage(TAIL, offset, len(buf), expect_row, None, f"{len(buf) - offset} bytes")


def _resync(
    buf: memoryview, offset: int, expect_row: int, is_end: bool, detail: str
) -> Damage | None:
    window_end = offset + 1 + RESYNC_MAX_BYTES + RECORD_HEADER_BYTES
    if not is_end and window_end > len(buf):
        return None
    at = find_record(buf, offset + 1, expect_row)
    if at is not None:
        return Damage(HEADER, offset, at, expect_row, _row_at(buf, at), detail)
    kind = TAIL if is_end else REST
    return Damage(kind, offset, len(buf), expect_row, None, detail)


def _row_at(buf: memoryview, offset: int) -> int:
    header = decode_record_header(buf, offset)
    assert header is not None
    return header.row
