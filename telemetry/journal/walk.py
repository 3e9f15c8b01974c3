"""Walk: takes in the records of a journal's segments, to find out where the journal stands.

In: the bytes of segments, in the order of their rows.
Out: the next row, the streams with their last seqs, and the damage.
Never: writes a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared.record import (
    EVENTS,
    STREAMS,
    CorruptRecord,
    SegmentHeader,
    StreamEntry,
    decode_segment_header,
    decode_table,
    find_record,
)
from telemetry.journal.closed import read_closed
from telemetry.journal.layout import SegmentFile, segments
from telemetry.journal.scan import CONTENT, Damage, Found, scan


@dataclass
class Walked:
    """Standing of a journal behind the segments that were walked so far."""

    journal_uuid: bytes | None = None
    next_row: int = 0
    next_stream: int = 0
    """A number above every stream number seen, because numbers are never used twice."""

    streams: dict[int, StreamEntry] = field(default_factory=dict)
    closed: dict[int, StreamEntry] = field(default_factory=dict)
    """Streams that have ended and that no segment header names any more."""

    closed_size: int = 0
    damage: list[Damage] = field(default_factory=list)

    def start(self, header: SegmentHeader) -> None:
        """Begin with the header of a segment, which stands for all segments before it."""
        self.journal_uuid = header.journal_uuid
        self.streams = dict(header.streams)
        self.next_stream = max(header.streams, default=-1) + 1
        self.next_row = header.first_row

    def walk(
        self, data: bytes, start: int, unpromised: int | None = None
    ) -> tuple[int, list[Damage]]:
        """Take in the records of a segment from offset start on.

        unpromised: offset behind which nothing was promised to be on disk; None if unknown.
        Damage behind it ends the walk, as a torn tail. After a power cut the disk may hold a
        later block of a write without an earlier one: if the records behind such a hole were
        kept, the events in the hole would count as received and never be sent again.

        Returns the offset where the last whole record ends, and the damage behind it.
        """
        end = start
        behind: list[Damage] = []
        for item in _scanned(memoryview(data), start, self.next_row):
            if isinstance(item, Found):
                if behind and unpromised is not None and behind[0].offset >= unpromised:
                    break
                self.damage += behind
                behind.clear()
                self._take(item)
                end = item.end
            else:
                behind.append(item)
        return end, behind

    def walk_headless(self, segment: SegmentFile) -> None:
        """Take in the records of a segment whose header is damaged."""
        data = segment.path.read_bytes()
        # The row in its name counts as used, so that no new segment gets the same name.
        self.next_row = max(self.next_row, segment.first_row)
        start = find_record(memoryview(data), 0, self.next_row)
        if start is not None:
            _, behind = self.walk(data, start)
            self.damage += behind
            self.next_row = max(self.next_row, *(item.next_row or 0 for item in behind), 0)
        self.next_row = max(self.next_row, segment.first_row + 1)

    def add_closed(self, directory: Path) -> None:
        """Add the closed streams of the journal; they keep their numbers if they send again."""
        closed = read_closed(directory)
        streams = closed.streams
        known = streams.keys() | self.streams.keys()
        # Stream numbers have no holes: a number that is missing was lost with the closed file.
        if closed.is_damaged or len(known) <= max(known, default=-1):
            # Every stream is named in some segment: read all segments, once.
            streams = _furthest(streams, _streams_of_all(directory))
        self.closed = {n: entry for n, entry in streams.items() if n not in self.streams}
        self.closed_size = closed.size
        self.next_stream = max(self.next_stream, max(streams, default=-1) + 1)

    def _take(self, item: Found) -> None:
        header = item.header
        self.next_row = header.next_row
        self.next_stream = max(self.next_stream, header.stream + 1)
        if header.type == STREAMS:
            try:
                self.streams.update(decode_table(item.payload))
            except CorruptRecord as exc:
                place = item.offset, item.end, header.row, header.row
                self.damage.append(Damage(CONTENT, *place, str(exc)))
        elif header.type == EVENTS and header.stream in self.streams:
            entry = self.streams[header.stream]
            self.streams[header.stream] = StreamEntry(
                entry.run_id, entry.session, entry.source, header.base_seq + header.count - 1
            )


def _scanned(data: memoryview, start: int, expect_row: int) -> Iterator[Found | Damage]:
    """Yield the records and damage from start on, with offsets into data."""
    for item in scan(data[start:], expect_row, is_end=True):
        yield item._replace(offset=item.offset + start, end=item.end + start)


def _furthest(
    listed: dict[int, StreamEntry], found: dict[int, StreamEntry]
) -> dict[int, StreamEntry]:
    """Merge both, keeping for each stream the entry with the higher last seq.

    A stream that sent more after it was closed has two entries in the list, and damage may
    have left only the older one.
    """
    merged = dict(listed)
    for number, entry in found.items():
        if number not in listed or listed[number].durable_seq < entry.durable_seq:
            merged[number] = entry
    return merged


def _streams_of_all(directory: Path) -> dict[int, StreamEntry]:
    """Return every stream that any segment names, with its last seq on disk."""
    found = Walked()
    for segment in segments(directory):
        data = segment.path.read_bytes()
        found.next_row = segment.first_row
        with contextlib.suppress(CorruptRecord):
            if (header := decode_segment_header(memoryview(data))) is not None:
                found.streams |= header.streams
                found.walk(data, header.size)
                continue
        found.walk_headless(segment)
    return found.streams
