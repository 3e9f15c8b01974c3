"""Recovery: the end of a journal after a crash, the place to continue writing.

In: the journal directory of a run whose writer has ended.
Out: the place behind the last whole record, the streams, and the damage.
Never: deletes data: a torn tail is saved to `quarantine/` before it is cut.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared.record import (
    EVENTS,
    SEGMENT_HEADER_BYTES,
    STREAMS,
    CorruptRecord,
    StreamEntry,
    decode_segment_header,
    decode_table,
    find_record,
)
from telemetry.journal.closed import read_closed
from telemetry.journal.layout import (
    Mark,
    SegmentFile,
    make_durably,
    read_mark,
    segments,
    sync_directory,
)
from telemetry.journal.scan import CONTENT, HOLE, SEGMENT, Damage, Found, scan


@dataclass
class Recovered:
    """State of a journal after recovery. segment is None if a new one has to be begun."""

    journal_uuid: bytes | None = None
    segment: SegmentFile | None = None
    offset: int = 0
    next_row: int = 0
    next_stream: int = 0
    """A number above every stream number seen, because numbers are never used twice."""

    streams: dict[int, StreamEntry] = field(default_factory=dict)
    closed: dict[int, StreamEntry] = field(default_factory=dict)
    """Streams that have ended and that no segment header names any more."""

    closed_size: int = 0
    damage: list[Damage] = field(default_factory=list)


def recover(directory: Path) -> Recovered:
    """Find the end of the journal, and cut a torn tail so that writing can continue there.

    Reads the last segment with an undamaged header, which stands for all before it,
    and the segments behind it. Row numbers are never used twice: rows before the durable
    mark count as used even if their bytes are lost.
    """
    state = Recovered()
    mark = read_mark(directory)
    unread: list[SegmentFile] = []
    # 1. Go back from the last segment to one whose header can be read.
    for segment in reversed(segments(directory)):
        data = segment.path.read_bytes()
        try:
            header = decode_segment_header(memoryview(data))
            if header is None and _has_records(data, segment):
                raise CorruptRecord("segment header: its length is damaged")
        except CorruptRecord as exc:
            state.damage.append(Damage(SEGMENT, 0, len(data), segment.first_row, None, str(exc)))
            unread.insert(0, segment)
            continue
        if header is None:
            _set_aside(directory, segment, data)
            continue
        # 2. Start from its header, and walk the records up to the last whole one.
        state.journal_uuid = header.journal_uuid
        state.streams = dict(header.streams)
        state.next_stream = max(header.streams, default=-1) + 1
        state.next_row = header.first_row
        promised = mark.offset if mark is not None and mark.segment == segment.first_row else 0
        is_behind_mark = mark is not None and mark.segment <= segment.first_row and not unread
        end, behind = _walk(state, data, header.size, promised if is_behind_mark else None)
        if end < promised <= len(data):
            # Before the durable mark this is damage, not a torn tail: the bytes were on disk
            # and readers may have seen them, so they are not cut.
            state.damage += behind
            end = promised
        # 3. Cut a torn tail, and continue in this segment if nothing promised is damaged.
        if not unread:
            _cut(directory, segment, data, end)
            # Readers may have read up to the mark: nothing is written before it again.
            if end >= promised:
                state.segment, state.offset = segment, end
        break
    # 4. Take in the records of later segments whose headers are damaged.
    for segment in unread:
        _walk_headless(state, segment)
    # 5. Add the closed streams.
    _add_closed(state, directory)
    # 6. Rows before the mark stay used: a hole there is reported as damage.
    if mark is not None and mark.next_row > state.next_row:
        state.damage.append(Damage(HOLE, 0, 0, state.next_row, mark.next_row, "durable rows"))
        state.next_row = mark.next_row
    return state


def readable_end(directory: Path) -> Mark | None:
    """Return the mark up to which a journal can be read; without a writer, recovery's mark.

    Changes nothing. The mark itself is not synced with each sync: after a power cut,
    acknowledged rows may lie behind it until a writer opens the journal again.
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
    state = Recovered(next_row=header.first_row)
    promised = mark.offset if is_marked else 0
    end, _ = _walk(state, data, header.size, promised)
    return Mark(segment.first_row, max(end, promised), max(state.next_row, mark.next_row))


def identify(directory: Path) -> tuple[bytes, dict[int, StreamEntry]]:
    """Return the uuid of a journal, and its streams with their last seqs. Changes nothing.

    Raises:
        CorruptRecord: no segment has a header that can be read.
        OSError: the directory can't be read.
    """
    state = Recovered()
    unread: list[SegmentFile] = []
    for segment in reversed(segments(directory)):
        data = segment.path.read_bytes()
        header = None
        with contextlib.suppress(CorruptRecord):
            header = decode_segment_header(memoryview(data))
        if header is None:
            unread.insert(0, segment)
            continue
        state.streams, state.next_row = dict(header.streams), header.first_row
        _walk(state, data, header.size)
        for headless in unread:
            _walk_headless(state, headless)
        _add_closed(state, directory)
        return header.journal_uuid, state.closed | state.streams
    raise CorruptRecord(f"{directory}: no segment tells which journal this is")


def _add_closed(state: Recovered, directory: Path) -> None:
    """Add the closed streams to state; they keep their numbers if they send again."""
    closed = read_closed(directory)
    streams = closed.streams
    known = streams.keys() | state.streams.keys()
    # Stream numbers have no holes: a number that is missing was lost with the closed file.
    if closed.is_damaged or len(known) <= max(known, default=-1):
        # Every stream is named in some segment: read all segments, once.
        streams = _furthest(streams, _streams_of_all(directory))
    state.closed = {n: entry for n, entry in streams.items() if n not in state.streams}
    state.closed_size = closed.size
    state.next_stream = max(state.next_stream, max(streams, default=-1) + 1)


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
    found = Recovered()
    for segment in segments(directory):
        data = segment.path.read_bytes()
        found.next_row = segment.first_row
        with contextlib.suppress(CorruptRecord):
            if (header := decode_segment_header(memoryview(data))) is not None:
                found.streams |= header.streams
                _walk(found, data, header.size)
                continue
        _walk_headless(found, segment)
    return found.streams


def is_written(directory: Path) -> bool:
    """True if a writer has the journal open. False on a file system without locks."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A shared lock: two processes that ask at once must not see each other as writers.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _has_records(data: bytes, segment: SegmentFile) -> bool:
    """True if a segment holds records although its header seems to be cut short."""
    return find_record(memoryview(data), SEGMENT_HEADER_BYTES, segment.first_row) is not None


def _walk_headless(state: Recovered, segment: SegmentFile) -> None:
    """Take in the records of a segment whose header is damaged; the file is not changed."""
    data = segment.path.read_bytes()
    # The row in its name counts as used, so that no new segment gets the same name.
    state.next_row = max(state.next_row, segment.first_row)
    start = find_record(memoryview(data), 0, state.next_row)
    if start is not None:
        _, behind = _walk(state, data, start)
        state.damage += behind
        state.next_row = max(state.next_row, *(item.next_row or 0 for item in behind), 0)
    state.next_row = max(state.next_row, segment.first_row + 1)


def _walk(
    state: Recovered, data: bytes, start: int, unpromised: int | None = None
) -> tuple[int, list[Damage]]:
    """Take in the records from offset start on.

    unpromised: offset behind which nothing was promised to be on disk; None if unknown.
    Damage behind it ends the walk, as a torn tail. After a power cut the disk may hold a
    later block of a write without an earlier one: if the records behind such a hole were
    kept, the events in the hole would count as received and never be sent again.

    Returns the offset where the last whole record ends, and the damage behind it.
    """
    end = start
    behind: list[Damage] = []
    for item in _scanned(memoryview(data), start, state.next_row):
        if isinstance(item, Found):
            if behind and unpromised is not None and behind[0].offset >= unpromised:
                break
            state.damage += behind
            behind.clear()
            _learn(state, item)
            end = item.end
        else:
            behind.append(item)
    return end, behind


def _scanned(data: memoryview, start: int, expect_row: int) -> Iterator[Found | Damage]:
    """Yield the records and damage from start on, with offsets into data."""
    for item in scan(data[start:], expect_row, is_end=True):
        yield item._replace(offset=item.offset + start, end=item.end + start)


def _learn(state: Recovered, item: Found) -> None:
    header = item.header
    state.next_row = header.next_row
    state.next_stream = max(state.next_stream, header.stream + 1)
    if header.type == STREAMS:
        try:
            state.streams.update(decode_table(item.payload))
        except CorruptRecord as exc:
            state.damage.append(
                Damage(CONTENT, item.offset, item.end, header.row, header.row, str(exc))
            )
    elif header.type == EVENTS and header.stream in state.streams:
        entry = state.streams[header.stream]
        state.streams[header.stream] = StreamEntry(
            entry.run_id, entry.session, entry.source, header.base_seq + header.count - 1
        )


def _set_aside(directory: Path, segment: SegmentFile, data: bytes) -> None:
    """Move a segment away whose creation was cut short by a crash.

    Nothing in it was ever acknowledged, and under its name it would hide rows of the
    segment before it.
    """
    _save_tail(directory, segment, data, 0)
    segment.path.unlink()
    sync_directory(directory)


def _cut(directory: Path, segment: SegmentFile, data: bytes, end: int) -> None:
    if end < len(data):
        _save_tail(directory, segment, data[end:], end)
        os.truncate(segment.path, end)


def _save_tail(directory: Path, segment: SegmentFile, tail: bytes, offset: int) -> None:
    """Save the bytes that are about to be cut to `quarantine/` beside the journal."""
    if not tail:
        return
    quarantine = directory.parent / "quarantine"
    make_durably(quarantine)
    name = f"{segment.path.name}.{offset}.tail"
    path, number = quarantine / name, 1
    while path.exists():
        path, number = quarantine / f"{name}.{number}", number + 1
    with path.open("wb") as file:
        file.write(tail)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(quarantine)
