"""What the journal's tests share: frames to write, and everything a journal gives back."""

from __future__ import annotations

import re
from pathlib import Path

from shared.events import MetricsLogged, encode_event, join_events
from shared.ids import StreamId
from shared.record import decode_record_header, decode_segment_header
from telemetry.journal.reader import CHUNK_BYTES, JournalReader
from telemetry.journal.rows import Row
from telemetry.journal.scan import Damage
from telemetry.journal.writer import JournalWriter

RUN, SESSION = "run", "session"


def stream(source: str) -> StreamId:
    """The stream of a source, in the one run and session of these tests."""
    return StreamId(RUN, SESSION, source)


def frame(first: int, count: int, size: int = 0) -> bytes:
    """The packed events number first to first + count - 1."""
    return join_events(
        [
            encode_event(
                MetricsLogged(kind="train", step=number, values={"x": "y" * size}), number, number
            )
            for number in range(first, first + count)
        ]
    )


def write(writer: JournalWriter, count: int, source: str = "rank0", size: int = 0) -> int:
    """Append the next events of a stream as one frame; each says its own row. Returns the row."""
    seq = writer.appended_seq(stream(source)) + 1
    row = writer.next_row
    return writer.append(stream(source), seq, count, frame(row, count, size))


def read_all(
    directory: Path,
    first_row: int = 0,
    *,
    is_recorded: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[list[Row], list[Damage]]:
    """Every row on disk, and every damage."""
    rows: list[Row] = []
    damage: list[Damage] = []
    reader = JournalReader(directory, first_row, is_recorded=is_recorded, chunk_bytes=chunk_bytes)
    with reader:
        while True:
            batch = reader.read()
            rows += batch.rows
            damage += batch.damage
            if batch.is_end:
                return rows, damage


def numbers(rows: list[Row]) -> list[int]:
    """The rows' numbers; each row's event must be the one that was written there."""
    for row in rows:
        event = row.envelope.event()
        assert isinstance(event, MetricsLogged) and event.step == row.row == row.envelope.wall_ns
    return [row.row for row in rows]


def record_places(path: Path) -> list[tuple[int, int]]:
    """(offset, end) of each record of a segment."""
    data = memoryview(path.read_bytes())
    header = decode_segment_header(data)
    assert header is not None
    places, offset = [], header.size
    while (record := decode_record_header(data, offset)) is not None:
        places.append((offset, offset + record.size))
        offset += record.size
    assert offset == len(data)
    return places


def rows_of(path: Path, place: tuple[int, int]) -> range:
    """The rows that the record at this place holds."""
    record = decode_record_header(memoryview(path.read_bytes()), place[0])
    assert record is not None
    return range(record.row, record.next_row)


def only_segment(directory: Path) -> Path:
    (path,) = sorted(directory.glob("*.seg"))
    return path


def is_whole(directory: Path) -> bool:
    """Every file in the journal's directory is one that belongs there."""
    return all(re.fullmatch(r"\d{20}\.seg|durable|closed", p.name) for p in directory.iterdir())


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))
