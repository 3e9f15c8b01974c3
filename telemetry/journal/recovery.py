"""Recovery: the end of a journal after a crash, the place to continue writing.

In: the journal directory of a run whose writer has ended.
Out: the place behind the last whole record, the streams, and the damage.
Never: deletes data: a torn tail is saved to `quarantine/` before it is cut.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shared.files import make_directory, write_atomically
from shared.record import (
    SEGMENT_HEADER_BYTES,
    CorruptRecord,
    SegmentHeader,
    decode_segment_header,
    find_record,
)
from telemetry.journal.layout import Mark, SegmentFile, read_mark, segments
from telemetry.journal.scan import HOLE, SEGMENT, Damage
from telemetry.journal.walk import Walked


@dataclass
class Recovered(Walked):
    """Standing of a journal after recovery."""

    segment: SegmentFile | None = None
    """Segment to continue in, behind `offset`; None if a new one has to be begun."""

    offset: int = 0


class _Base(NamedTuple):
    """The last segment whose header can be read, with its content."""

    segment: SegmentFile
    header: SegmentHeader
    data: bytes


def recover(directory: Path) -> Recovered:
    """Find the end of the journal, and cut a torn tail so that writing can continue there.

    Reads the last segment with an undamaged header, which stands for all before it,
    and the segments behind it. Row numbers are never used twice: rows before the durable
    mark count as used even if their bytes are lost.
    """
    state = Recovered()
    mark = read_mark(directory)
    # 1. Go back from the last segment to one whose header can be read.
    base, headless = _last_with_header(state, directory)
    # 2. Walk its records to the last whole one, and cut a torn tail. First, because rows and
    #    streams of the segments behind it count on from there.
    if base is not None:
        _walk_base(state, directory, base, mark, is_last=not headless)
    # 3. Take in the records of later segments whose headers are damaged.
    for segment in headless:
        state.walk_headless(segment)
    # 4. Add the closed streams, when all that the segments name is known.
    state.add_closed(directory)
    # 5. Count rows before the mark as used: a hole there is reported as damage.
    if mark is not None and mark.next_row > state.next_row:
        state.damage.append(Damage(HOLE, 0, 0, state.next_row, mark.next_row, "durable rows"))
        state.next_row = mark.next_row
    return state


def _last_with_header(state: Recovered, directory: Path) -> tuple[_Base | None, list[SegmentFile]]:
    """Return the last segment whose header can be read, and the damaged ones behind it.

    A segment whose creation was cut short by a crash is moved away.
    """
    headless: list[SegmentFile] = []
    for segment in reversed(segments(directory)):
        data = segment.path.read_bytes()
        try:
            header = decode_segment_header(memoryview(data))
            if header is None and _has_records(data, segment):
                raise CorruptRecord("segment header: its length is damaged")
        except CorruptRecord as exc:
            state.damage.append(Damage(SEGMENT, 0, len(data), segment.first_row, None, str(exc)))
            headless.insert(0, segment)
            continue
        if header is not None:
            return _Base(segment, header, data), headless
        _set_aside(directory, segment, data)
    return None, headless


def _has_records(data: bytes, segment: SegmentFile) -> bool:
    """True if a segment holds records although its header seems to be cut short."""
    return find_record(memoryview(data), SEGMENT_HEADER_BYTES, segment.first_row) is not None


def _walk_base(
    state: Recovered, directory: Path, base: _Base, mark: Mark | None, *, is_last: bool
) -> None:
    """Walk the records of a segment; if it is the last, cut its torn tail and continue in it.

    Before the durable mark damage is no torn tail: the bytes were on disk, and readers may
    have seen them. They are not cut, and nothing is written in their place.
    """
    segment, header, data = base
    promised = mark.offset if mark is not None and mark.segment == segment.first_row else 0
    is_behind_mark = mark is not None and mark.segment <= segment.first_row and is_last
    # 1. Take in the records, up to damage that no mark stands behind.
    state.start(header)
    end, behind = state.walk(data, header.size, promised if is_behind_mark else None)
    # 2. Keep what was promised, whole or damaged.
    if end < promised <= len(data):
        state.damage += behind
        end = promised
    # 3. Cut what is behind it, and go on there if all that was promised is in the file.
    if is_last:
        _cut(directory, segment, data, end)
        if end >= promised:
            state.segment, state.offset = segment, end


def _set_aside(directory: Path, segment: SegmentFile, data: bytes) -> None:
    """Move a segment away whose creation was cut short by a crash.

    Nothing in it was ever acknowledged, and under its name it would hide rows of the
    segment before it. If a power cut brings it back, it is moved away again.
    """
    _save_tail(directory, segment, data, 0)
    segment.path.unlink()


def _cut(directory: Path, segment: SegmentFile, data: bytes, end: int) -> None:
    if end < len(data):
        _save_tail(directory, segment, data[end:], end)
        os.truncate(segment.path, end)


def _save_tail(directory: Path, segment: SegmentFile, tail: bytes, offset: int) -> None:
    """Save the bytes that are about to be cut to `quarantine/` beside the journal."""
    if not tail:
        return
    quarantine = directory.parent / "quarantine"
    make_directory(quarantine)
    name = f"{segment.path.name}.{offset}.tail"
    path, number = quarantine / name, 1
    while path.exists():
        path, number = quarantine / f"{name}.{number}", number + 1
    write_atomically(path, tail)
