"""Records and segments: the bytes of a journal, and of a spool.

In: records as structs, or a buffer.
Out: the same as bytes, or as structs.
Never: opens a file; all functions work on bytes in memory.

A segment is a header and records behind it, all little-endian:

    segment header (44 bytes, then the table)
      magic          8   b"TELJRNL\\0"
      version        u16
      reserved       u16
      table length   u32
      journal uuid   16
      first row      u64
      crc            u32  crc32 of the 40 bytes before it and of the table
      stream table        MessagePack {stream: [run_id, session, source, durable_seq]}

    record (40 bytes, then the payload)
      magic          u16
      type           u8   1 events, 2 stream table entries
      flags          u8   bit 0: late, the events of a session that was over when they came
      stream         u32
      row            u64  row of the first event; of the next event in a table record
      base_seq       u64  seq of the first event in its stream
      count          u16  events in the payload; 0 in a table record
      reserved       u16
      payload length u32
      payload crc    u32
      header crc     u32  of the 36 bytes before it
      payload             the events of one DATA frame, one MessagePack array

A table record is written twice: if the only one had a bad bit, the records of its
stream could not be assigned to any source.

Rows rise by `count` from record to record and from segment to segment. Readers check
this too, because a file cut at a record boundary has no bad crc.
"""

from __future__ import annotations

import struct
import zlib
from typing import Annotated, Final, NamedTuple

import msgspec

from shared.ids import StreamId

EVENTS: Final = 1
STREAMS: Final = 2

LATE: Final = 0x01
"""Flag of a record: its events were sent by another process after their session ended."""

SEGMENT_MAGIC: Final = b"TELJRNL\x00"
SEGMENT_VERSION: Final = 1
RECORD_MAGIC: Final = 0x7E1E
PAYLOAD_MAX_BYTES: Final = 2 * 1024 * 1024
TABLE_MAX_BYTES: Final = 64 * 1024 * 1024
RESYNC_MAX_BYTES: Final = 1024 * 1024

_SEGMENT: Final = struct.Struct("<8sHHI16sQ")
_RECORD: Final = struct.Struct("<HBBIQQHHII")
_CRC: Final = struct.Struct("<I")
_MAGIC_BYTES: Final = struct.pack("<H", RECORD_MAGIC)
SEGMENT_HEADER_BYTES: Final = _SEGMENT.size + _CRC.size
RECORD_HEADER_BYTES: Final = _RECORD.size + _CRC.size


class CorruptRecord(Exception):
    """Error: bytes that are not a header, or a checksum that does not match."""


class StreamEntry(msgspec.Struct, frozen=True, array_like=True):
    """The stream behind a stream number of one journal, and the last seq of it on disk."""

    run_id: str
    session: str
    source: str
    durable_seq: Annotated[int, msgspec.Meta(ge=-1)]

    @property
    def stream_id(self) -> StreamId:
        return StreamId(self.run_id, self.session, self.source)


class SegmentHeader(NamedTuple):
    journal_uuid: bytes
    first_row: int
    streams: dict[int, StreamEntry]
    size: int
    """Bytes of the header with its table; the first record begins there."""


class RecordHeader(msgspec.Struct, frozen=True):
    type: int
    stream: int
    row: int
    base_seq: int
    count: int
    payload_length: int
    payload_crc: int
    flags: int = 0

    @property
    def is_late(self) -> bool:
        return bool(self.flags & LATE)

    @property
    def next_row(self) -> int:
        return self.row + self.count

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return RECORD_HEADER_BYTES + self.payload_length


_TABLE: Final = msgspec.msgpack.Decoder(dict[int, StreamEntry])
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode_table(streams: dict[int, StreamEntry]) -> bytes:
    """Encode a stream table as MessagePack: the payload of a STREAMS record."""
    return _ENCODER.encode(streams)


def decode_table(data: bytes | memoryview) -> dict[int, StreamEntry]:
    """Decode a stream table.

    Raises:
        CorruptRecord: the bytes are not a stream table.
    """
    try:
        return _TABLE.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise CorruptRecord(f"stream table: {exc}") from exc


def encode_segment_header(
    journal_uuid: bytes, first_row: int, streams: dict[int, StreamEntry]
) -> bytes:
    """Encode the header and the stream table that a segment begins with."""
    table = encode_table(streams)
    head = _SEGMENT.pack(SEGMENT_MAGIC, SEGMENT_VERSION, 0, len(table), journal_uuid, first_row)
    return head + _CRC.pack(zlib.crc32(table, zlib.crc32(head))) + table


def decode_segment_header(buf: memoryview) -> SegmentHeader | None:
    """Decode the segment header at the start of buf; return None if buf ends within it.

    Raises:
        CorruptRecord: not a segment, of another version, or damaged.
    """
    if len(buf) < SEGMENT_HEADER_BYTES:
        return None
    magic, version, _, table_length, uuid, first_row = _SEGMENT.unpack_from(buf)
    if magic != SEGMENT_MAGIC:
        raise CorruptRecord("not a journal segment: its first bytes are not those of one")
    if version != SEGMENT_VERSION:
        raise CorruptRecord(f"segment of version {version}; this program reads {SEGMENT_VERSION}")
    if table_length > TABLE_MAX_BYTES:
        raise CorruptRecord(f"stream table of {table_length} bytes")
    size = SEGMENT_HEADER_BYTES + table_length
    if len(buf) < size:
        return None
    table = buf[SEGMENT_HEADER_BYTES:size]
    (crc,) = _CRC.unpack_from(buf, _SEGMENT.size)
    if zlib.crc32(table, zlib.crc32(buf[: _SEGMENT.size])) != crc:
        raise CorruptRecord("segment header: checksum mismatch")
    return SegmentHeader(uuid, first_row, decode_table(table), size)


def encode_record(
    type: int, stream: int, row: int, base_seq: int, count: int, payload: bytes, flags: int = 0
) -> bytes:
    """Encode one record, header and payload."""
    size, crc = len(payload), zlib.crc32(payload)
    head = _RECORD.pack(RECORD_MAGIC, type, flags, stream, row, base_seq, count, 0, size, crc)
    return b"".join((head, _CRC.pack(zlib.crc32(head)), payload))


def decode_record_header(buf: memoryview, offset: int = 0) -> RecordHeader | None:
    """Decode the record header at offset; return None if buf ends within it.

    Raises:
        CorruptRecord: no header, or a damaged one.
    """
    if len(buf) - offset < RECORD_HEADER_BYTES:
        return None
    fields = _RECORD.unpack_from(buf, offset)
    if fields[0] != RECORD_MAGIC:
        raise CorruptRecord("record header: wrong magic")
    (crc,) = _CRC.unpack_from(buf, offset + _RECORD.size)
    if zlib.crc32(buf[offset : offset + _RECORD.size]) != crc:
        raise CorruptRecord("record header: checksum mismatch")
    _, type, flags, stream, row, base_seq, count, _, length, payload_crc = fields
    if length > PAYLOAD_MAX_BYTES:
        raise CorruptRecord(f"record header: payload of {length} bytes")
    return RecordHeader(type, stream, row, base_seq, count, length, payload_crc, flags)


def payload_of(buf: memoryview, offset: int, header: RecordHeader) -> bytes | None:
    """Return the payload of the record at offset, checked; None if buf ends within it.

    Raises:
        CorruptRecord: checksum mismatch.
    """
    start = offset + RECORD_HEADER_BYTES
    if len(buf) < start + header.payload_length:
        return None
    payload = bytes(buf[start : start + header.payload_length])
    if zlib.crc32(payload) != header.payload_crc:
        raise CorruptRecord(
            f"record of rows {header.row} to {header.next_row - 1}: payload checksum mismatch"
        )
    return payload


def find_record(buf: memoryview, start: int, row_min: int) -> int | None:
    """Return the offset of the next valid record header from start on whose row is >= row_min.

    Searches at most RESYNC_MAX_BYTES. Returns None if there is no such header there.
    """
    window = bytes(buf[start : start + RESYNC_MAX_BYTES + RECORD_HEADER_BYTES])
    at = window.find(_MAGIC_BYTES)
    while 0 <= at <= RESYNC_MAX_BYTES:
        try:
            header = decode_record_header(buf, start + at)
        except CorruptRecord:
            header = None
        if header is not None and header.row >= row_min:
            return start + at
        at = window.find(_MAGIC_BYTES, at + 1)
    return None
