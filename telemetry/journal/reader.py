"""Reader: rows of a journal in order, never further than what is on disk.

In: the journal directory of a run, live or finished.
Out: rows, and the damaged or missing stretches between them.
Never: writes, or reads past the durable mark of a journal that a process is writing.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, NamedTuple

from shared.closing import Closing
from shared.events import DecodeError, decode_envelopes
from shared.record import (
    EVENTS,
    RECORD_HEADER_BYTES,
    RESYNC_MAX_BYTES,
    STREAMS,
    CorruptRecord,
    StreamEntry,
    decode_record_header,
    decode_table,
    find_record,
)
from telemetry.journal.identity import header_of, read_header
from telemetry.journal.layout import Mark, SegmentFile, read_mark, segments
from telemetry.journal.place import RecordPlace
from telemetry.journal.readable import is_written, readable_end
from telemetry.journal.rows import Row
from telemetry.journal.scan import CONTENT, HOLE, REST, SEGMENT, TAIL, Damage, Found, scan

CHUNK_BYTES: Final = 4 * 1024 * 1024


class NotAJournal(Exception):
    """Error: the directory is not a journal; the message names it."""


class Batch(NamedTuple):
    """Result of one read. is_end: nothing more is on disk at the moment."""

    rows: list[Row]
    damage: list[Damage]
    is_end: bool


class JournalReader(Closing):
    """Reads rows from first_row on. Not thread-safe."""

    def __init__(
        self,
        directory: Path,
        first_row: int = 0,
        *,
        is_recorded: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """Open the journal for reading from first_row.

        is_recorded: the journal may have no writer any more. Then the reader goes on to
        where recovery would, since after a power cut the mark may be older than the data.

        Raises:
            NotAJournal: no such directory, or no segment in it.
        """
        if not segments(directory):
            raise NotAJournal(f"{directory} is not a journal: it has no segment")
        self.directory = directory
        self._chunk_bytes = chunk_bytes
        self.next_row = self._first_row = first_row
        self.streams: dict[int, StreamEntry] = {}
        self._fd = -1
        self._segment: SegmentFile | None = None
        self._offset = 0
        self._expect_row = 0
        self._closed_segments: int = -1
        self._end = readable_end(directory) if is_recorded else None
        self.last_record: RecordPlace | None = None
        """The last record that was read whole; between two reads next_row is behind it."""
        self.is_blind = False
        """True if the journal has a writer but its mark can't be read: then it is unknown
        how much is on disk, and an empty read does not mean the end."""

    def read(self) -> Batch:
        """Return the next rows that are on disk, about 4 MiB of them at most."""
        mark = self._end = self._latest_end()
        self.is_blind = mark is None and is_written(self.directory)
        if self.is_blind:
            return Batch([], [], is_end=True)
        rows: list[Row] = []
        damage: list[Damage] = []
        while not rows and not damage:
            if self._segment is None and not self._open_next(mark, damage):
                return Batch(rows, damage, is_end=True)
            if self._segment is None:
                continue
            limit, is_sealed = self._limit(mark)
            progressed = self._read_chunk(limit, is_sealed, rows, damage)
            if progressed:
                continue
            if not is_sealed:
                return Batch(rows, damage, is_end=True)
            self._close_segment()
        return Batch(rows, damage, is_end=False)

    def close(self) -> None:
        """Close the open segment. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_chunk(
        self, limit: int, is_sealed: bool, rows: list[Row], damage: list[Damage]
    ) -> bool:
        """Scan one chunk from the current offset; return False if nothing was read."""
        size = min(self._chunk_bytes, limit - self._offset)
        data = os.pread(self._fd, size, self._offset) if size > 0 else b""
        is_end = self._offset + len(data) >= limit
        at = self._offset
        for item in scan(memoryview(data), self._expect_row, is_end):
            if isinstance(item, Damage) and item.kind == TAIL and not is_sealed:
                # Written after the last sync of a crashed writer: never promised, so
                # the reader treats it as not written.
                damage.append(_shifted(item, at))
                self._offset = limit
                return True
            self._offset = at + item.end
            self._take(item, at, rows, damage)
            if isinstance(item, Damage) and item.kind in (REST, TAIL):
                self._offset = limit
                return True
        return self._offset > at

    def _take(self, item: Found | Damage, at: int, rows: list[Row], damage: list[Damage]) -> None:
        if isinstance(item, Damage):
            self._note(_shifted(item, at), damage)
            self._expect_row = item.next_row or self._expect_row
            return
        header = item.header
        self._expect_row = header.next_row
        try:
            if header.type == STREAMS:
                self.streams.update(decode_table(item.payload))
            elif header.type == EVENTS and header.next_row > self.next_row:
                rows.extend(self._rows_of(item))
        except (DecodeError, CorruptRecord) as exc:
            place = at + item.offset, at + item.end, header.row, header.next_row
            self._note(Damage(CONTENT, *place, str(exc)), damage)
        self.next_row = max(self.next_row, header.next_row)
        if self._segment is not None and header.type == EVENTS:
            segment, offset = self._segment.first_row, at + item.offset
            self.last_record = RecordPlace(
                segment, offset, header.row, header.next_row, header.payload_crc
            )

    def _note(self, found: Damage, damage: list[Damage]) -> None:
        """Report damage, unless all of it lies before the first row to read."""
        is_before = found.first_row < self._first_row
        if not (is_before and found.next_row is not None and found.next_row <= self._first_row):
            damage.append(found)

    def _rows_of(self, item: Found) -> list[Row]:
        header = item.header
        entry = self.streams.get(header.stream)
        if entry is None:
            raise DecodeError(f"stream {header.stream} is in no table")
        envelopes = decode_envelopes(item.payload)
        if len(envelopes) != header.count:
            raise DecodeError(f"{len(envelopes)} events in a record of {header.count}")
        return [
            Row(
                header.row + i,
                entry.source,
                entry.session,
                header.base_seq + i,
                envelope,
                header.is_late,
            )
            for i, envelope in enumerate(envelopes)
            if header.row + i >= self.next_row
        ]

    # --- from segment to segment

    def _latest_end(self) -> Mark | None:
        """Return the latest known mark. A mark that was true once stays true."""
        mark = read_mark(self.directory)
        if mark is None or self._end is None:
            return mark or self._end
        return max(mark, self._end)

    def _limit(self, mark: Mark | None) -> tuple[int, bool]:
        """Return (offset up to which the open segment may be read, True if it is complete)."""
        assert self._segment is not None
        size = os.fstat(self._fd).st_size
        if mark is not None and mark.segment == self._segment.first_row:
            return min(mark.offset, size), False
        is_last = segments(self.directory)[-1].first_row == self._segment.first_row
        return size, not is_last

    def _open_next(self, mark: Mark | None, damage: list[Damage]) -> bool:
        """Open the segment that holds the next row, or the next existing one; False if none."""
        found = [
            segment
            for segment in segments(self.directory)
            if segment.first_row > self._closed_segments
            and (mark is None or segment.first_row <= mark.segment)
        ]
        if not found:
            return False
        segment = found[0]
        if self._closed_segments < 0:
            segment = max((s for s in found if s.first_row <= self.next_row), default=found[0])
            self._expect_row = min(segment.first_row, self.next_row)
        self._enter(segment, damage)
        return True

    def _enter(self, segment: SegmentFile, damage: list[Damage]) -> None:
        if segment.first_row > self._expect_row:
            self._note(
                Damage(HOLE, 0, 0, self._expect_row, segment.first_row, segment.path.name), damage
            )
        fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = read_header(fd)
        except CorruptRecord as exc:
            self._enter_headless(fd, segment, str(exc), damage)
            return
        self._fd, self._segment = fd, segment
        self._offset, self._expect_row = header.size, segment.first_row
        self.streams.update(header.streams)

    def _enter_headless(
        self, fd: int, segment: SegmentFile, detail: str, damage: list[Damage]
    ) -> None:
        """Continue at the first whole record of a segment whose header is damaged."""
        buf = memoryview(os.pread(fd, RESYNC_MAX_BYTES + RECORD_HEADER_BYTES, 0))
        start = find_record(buf, 0, segment.first_row)
        first = None if start is None else decode_record_header(buf, start)
        if start is None or first is None:
            os.close(fd)
            self._closed_segments = segment.first_row
            damage.append(Damage(SEGMENT, 0, 0, segment.first_row, None, detail))
            return
        self._fd, self._segment = fd, segment
        self._offset, self._expect_row = start, first.row
        damage.append(Damage(SEGMENT, 0, start, segment.first_row, first.row, detail))
        self.streams = _all_streams(self.directory) | self.streams

    def _close_segment(self) -> None:
        assert self._segment is not None
        self._closed_segments = self._segment.first_row
        self._segment = None
        self.close()


def _all_streams(directory: Path) -> dict[int, StreamEntry]:
    """Return the streams that the undamaged segment headers of a journal name."""
    streams: dict[int, StreamEntry] = {}
    for segment in segments(directory):
        with contextlib.suppress(CorruptRecord):
            streams.update(header_of(segment).streams)
    return streams


def _shifted(damage: Damage, by: int) -> Damage:
    return damage._replace(offset=damage.offset + by, end=damage.end + by)
