"""Recovery: what a journal holds after whatever happened, and where to write on.

In: the journal directory of a run whose writer is gone.
Out: the place behind the last whole record, the streams, and the damage.
Never: deletes. A torn tail is saved beside before it is cut.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from shared.record import (
    EVENTS,
    STREAMS,
    CorruptRecord,
    StreamEntry,
    decode_segment_header,
    decode_table,
    find_record,
)
from telemetry.journal.layout import SegmentFile, segments, sync_directory
from telemetry.journal.scan import HOLE, PAYLOAD, REST, SEGMENT, TAIL, Damage, Found, scan


@dataclass
class Recovered:
    """Where a journal stands. segment is None where a new one has to be begun."""

    journal_uuid: bytes | None = None
    segment: SegmentFile | None = None
    offset: int = 0
    next_row: int = 0
    streams: dict[int, StreamEntry] = field(default_factory=dict)
    damage: list[Damage] = field(default_factory=list)


def recover(directory: Path) -> Recovered:
    """Find the end of the journal and make it clean to write on from there.

    Reads the last segment whose header is whole, for that tells of all before
    it, and what is behind it. Row numbers are never given twice.
    """
    state = Recovered()
    unread: list[SegmentFile] = []
    for segment in reversed(segments(directory)):
        data = segment.path.read_bytes()
        try:
            header = decode_segment_header(memoryview(data))
        except CorruptRecord as exc:
            state.damage.append(Damage(SEGMENT, 0, len(data), segment.first_row, None, str(exc)))
            unread.insert(0, segment)
            continue
        if header is None:
            # Its creation was cut short: nothing in it was ever acknowledged.
            _cut(directory, segment, data, 0)
            continue
        state.journal_uuid = header.journal_uuid
        state.streams = dict(header.streams)
        state.next_row = header.first_row
        end = _walk(state, data, header.size)
        if not unread:
            _cut(directory, segment, data, end)
            state.segment, state.offset = segment, end
        break
    for segment in unread:
        _walk_headless(state, segment)
    return state


def _walk_headless(state: Recovered, segment: SegmentFile) -> None:
    """Take in the records of a segment whose header is damaged; it stays as it is."""
    data = segment.path.read_bytes()
    start = find_record(memoryview(data), 0, state.next_row)
    if start is not None:
        _walk(state, data, start)
    state.next_row = max(state.next_row, segment.first_row + 1)


def _walk(state: Recovered, data: bytes, start: int) -> int:
    """Take in the records behind start; return where the last whole one ends."""
    end = start
    undecided: list[Damage] = []
    for item in scan(memoryview(data)[start:], state.next_row, is_end=True):
        if isinstance(item, Found):
            state.damage += undecided
            undecided.clear()
            _learn(state, item)
            end = start + item.end
        elif item.kind in (TAIL, REST, PAYLOAD):
            # Damage with nothing whole behind it is a torn tail.
            undecided.append(item)
        elif item.kind == HOLE:
            state.damage.append(item)
        else:
            undecided.append(item)
    return end


def _learn(state: Recovered, item: Found) -> None:
    header = item.header
    state.next_row = header.next_row
    if header.type == STREAMS:
        state.streams.update(decode_table(item.payload))
    elif header.type == EVENTS and header.stream in state.streams:
        entry = state.streams[header.stream]
        state.streams[header.stream] = StreamEntry(
            entry.run_id, entry.session, entry.source, header.base_seq + header.count - 1
        )


def _cut(directory: Path, segment: SegmentFile, data: bytes, end: int) -> None:
    if end < len(data):
        _save_tail(directory, segment, data[end:], end)
        os.truncate(segment.path, end)


def _save_tail(directory: Path, segment: SegmentFile, tail: bytes, offset: int) -> None:
    """Keep the bytes that are about to be cut, in `quarantine/` beside the journal."""
    if not tail:
        return
    quarantine = directory.parent / "quarantine"
    quarantine.mkdir(exist_ok=True)
    name = f"{segment.path.name}.{offset}.tail"
    path, number = quarantine / name, 1
    while path.exists():
        path, number = quarantine / f"{name}.{number}", number + 1
    with path.open("wb") as file:
        file.write(tail)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(quarantine)
