"""Repair: writes a clean copy of a damaged journal beside it.

In: the directory of a run whose journal has holes or damaged records.
Out: `<run>.repaired`, with every event that can still be read, and a Gap where
some can't. Its rows are numbered anew, so it is a journal of its own: replay it
into fresh sinks.
Never: changes what it copies.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

import msgspec

from shared.events import Gap, encode_event, join_events
from shared.ids import SIDECAR, StreamId, new_session
from shared.wire import FRAME_MAX_EVENTS, FRAME_TARGET_BYTES
from telemetry.errors import CommandError
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.rows import Row
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import read_json, write_json
from telemetry.run_dir import RunDir

SYNC_BYTES: Final = 8 * 1024 * 1024
_ENCODER: Final = msgspec.msgpack.Encoder()


def repair(run_dir: Path) -> Path:
    """Copy the readable rows of a run, and return the directory of the copy.

    Raises:
        CommandError: it has no journal, or there is such a copy already.
    """
    run_dir = run_dir.resolve()
    target = run_dir.with_name(run_dir.name + ".repaired")
    if target.exists():
        raise CommandError(f"{target} exists already; move it away to repair once more")
    try:
        reader = JournalReader(RunDir(run_dir).journal, is_recorded=True)
    except NotAJournal as exc:
        raise CommandError(str(exc)) from exc
    beside = target.with_name(target.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    with reader, JournalWriter(RunDir(beside).journal) as writer:
        _copy(run_dir.name, reader, writer)
        info = read_json(RunDir(run_dir).run_file)
        if info is not None:
            write_json(RunDir(beside).run_file, {**info, "as_of_row": writer.durable_row})
    beside.rename(target)
    return target


def _copy(run_id: str, reader: JournalReader, writer: JournalWriter) -> None:
    own, gaps = StreamId(run_id, new_session(), SIDECAR), 0
    for rows, missing in _stretches(reader):
        if missing:
            writer.append(own, gaps, 1, join_events([_gap(missing)]))
            gaps += 1
        for frame in _frames(rows):
            first, packed = frame[0], [_ENCODER.encode(row.envelope) for row in frame]
            stream = StreamId(run_id, first.session, first.source)
            payload = join_events(packed)
            writer.append(stream, first.seq, len(packed), payload, is_late=first.is_late)
        if writer.pending_bytes > SYNC_BYTES:
            writer.sync()
    writer.sync()


def _stretches(reader: JournalReader) -> Iterator[tuple[list[Row], int]]:
    """Yield rows without a hole between them, and the number missing before the first."""
    expected = end = 0
    while True:
        batch = reader.read()
        end = max([end, *(damage.next_row or 0 for damage in batch.damage)])
        # Rows of one stretch all have the same distance to their place in it.
        for _, group in groupby(enumerate(batch.rows), lambda pair: pair[1].row - pair[0]):
            rows = [row for _, row in group]
            yield rows, rows[0].row - expected
            expected = rows[-1].row + 1
        if batch.is_end and not batch.rows and not batch.damage:
            break
    if end > expected:
        yield [], end - expected


def _frames(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield consecutive rows of one stream, no more than a frame holds."""
    frame: list[Row] = []
    size = 0
    for row in rows:
        if frame and not (_follows(frame[-1], row) and size < FRAME_TARGET_BYTES / 2):
            yield frame
            frame, size = [], 0
        frame.append(row)
        size += len(bytes(row.envelope.body))
        if len(frame) == FRAME_MAX_EVENTS:
            yield frame
            frame, size = [], 0
    if frame:
        yield frame


def _follows(last: Row, row: Row) -> bool:
    expected = last.source, last.session, last.seq + 1, last.is_late
    return (row.source, row.session, row.seq, row.is_late) == expected


def _gap(missing: int) -> bytes:
    gap = Gap(count=missing, by_kind={"unknown": missing}, reason="damaged in the journal")
    return encode_event(gap, time.time_ns(), time.monotonic_ns())
