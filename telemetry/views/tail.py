"""Tail: the last values of a run, from the last few MiB of its journal.

In: the directory of a journal, live, ended or damaged.
Out: the last step, its loss, and the time of the last event, as far as the tail has them.
Never: reads more than the last of STEPS_BYTES of a journal, or past its durable mark.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from shared.events import TRAIN, DecodeError, MetricsLogged, Scalar, decode_envelopes
from shared.ids import HARDWARE_PREFIX, SIDECAR
from shared.record import (
    EVENTS,
    STREAMS,
    CorruptRecord,
    StreamEntry,
    decode_record_header,
    decode_segment_header,
    decode_table,
    find_record,
)
from telemetry.journal.layout import Mark, SegmentFile, read_mark, segments
from telemetry.journal.scan import Found, scan
from telemetry.run_dir import RunDir

STEPS_BYTES: Final = (32 * 1024, 512 * 1024)
"""Sizes of the tail that is read: a larger one where a smaller one has no step of training."""
MEASURED_BY: Final = (HARDWARE_PREFIX, SIDECAR)
"""Beginnings of sources that report no step of training."""


class Tail(msgspec.Struct):
    """The newest values near the end of a journal; None where the tail has none."""

    rows: int = 0
    """Row behind the last one on disk."""
    last_wall_ns: int | None = None
    step: int | None = None
    loss: float | None = None


def read_tail(run_dir: os.PathLike[str]) -> Tail:
    """Return the last values of a run. A journal that can't be read gives an empty tail."""
    journal = RunDir(run_dir).journal  # type: ignore[arg-type]
    tail = Tail()
    with contextlib.suppress(OSError):
        mark, found = read_mark(journal), segments(journal)
        tail.rows = mark.next_row if mark else 0
        for size in STEPS_BYTES:
            records, is_all = _last_records(found, mark, size)
            tail = _tail_of(records, tail)
            if is_all or (tail.step is not None and tail.loss is not None):
                break
    return tail


def _tail_of(records: list[tuple[Found, str]], known: Tail) -> Tail:
    tail = Tail(rows=known.rows)
    for found, source in reversed(records):
        try:
            envelopes = decode_envelopes(found.payload)
        except DecodeError:
            continue
        if tail.last_wall_ns is None and envelopes:
            tail.last_wall_ns = envelopes[-1].wall_ns
            tail.rows = max(tail.rows, found.header.next_row)
        if source.startswith(MEASURED_BY):
            continue
        for envelope in reversed(envelopes):
            if envelope.tag == MetricsLogged.TAG:
                with contextlib.suppress(DecodeError):
                    event = envelope.event()
                    assert isinstance(event, MetricsLogged)
                    _take(tail, event)
            if tail.step is not None and tail.loss is not None:
                return tail
    return tail


def _take(tail: Tail, event: MetricsLogged) -> None:
    """Take step and loss from an event of training, unless a later one had them."""
    if event.kind != TRAIN:
        return
    tail.step = event.step if tail.step is None else tail.step
    if tail.loss is None:
        tail.loss = _loss_of(event.values)


def _loss_of(values: dict[str, Scalar]) -> float | None:
    """Return `train/loss`, or else the one value whose name is or ends in `loss`."""
    named = [name for name in values if name == "loss" or name.endswith("/loss")]
    for name in ("train/loss", *named):
        value = values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _last_records(
    found: list[SegmentFile], mark: Mark | None, size: int
) -> tuple[list[tuple[Found, str]], bool]:
    """Return the records in the last `size` bytes of a journal, each with its source.

    The flag is True if these are all records of the journal. A source that no table in these
    bytes or in the header of a segment names is empty.
    """
    records: list[tuple[Found, str]] = []
    left = size
    for segment in reversed(found):
        if mark is not None and segment.first_row > mark.segment:
            continue
        limit = mark.offset if mark is not None and segment.first_row == mark.segment else None
        part, is_whole = _records_of(segment, limit, left)
        records = [*part, *records]
        left -= sum(each.end - each.offset for each, _ in part)
        if not is_whole or left <= 0:
            return records, False
    return records, True


def _records_of(
    segment: SegmentFile, limit: int | None, size: int
) -> tuple[list[tuple[Found, str]], bool]:
    """Return the records in the last bytes of a segment, and True if these are all of it."""
    fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = os.fstat(fd).st_size if limit is None else min(limit, os.fstat(fd).st_size)
        start = max(0, end - size)
        data = memoryview(os.pread(fd, end - start, start))
        head = data if start == 0 else memoryview(os.pread(fd, STEPS_BYTES[0], 0))
    finally:
        os.close(fd)
    streams: dict[int, StreamEntry] = {}
    at: int | None = None
    with contextlib.suppress(CorruptRecord):
        if (header := decode_segment_header(head)) is not None:
            streams, at = dict(header.streams), header.size
    if start > 0 or at is None:
        at = find_record(data, 0, segment.first_row)
    if at is None:
        return [], start == 0
    return list(_named(_found(data, at), streams)), start == 0


def _found(data: memoryview, at: int) -> Iterator[Found]:
    first = None
    with contextlib.suppress(CorruptRecord):
        first = decode_record_header(data, at)
    for item in scan(data[at:], first.row if first else 0, is_end=True):
        if isinstance(item, Found):
            yield item


def _named(found: Iterable[Found], streams: dict[int, StreamEntry]) -> Iterator[tuple[Found, str]]:
    for item in found:
        if item.header.type == STREAMS:
            with contextlib.suppress(CorruptRecord):
                streams.update(decode_table(item.payload))
        elif item.header.type == EVENTS:
            entry = streams.get(item.header.stream)
            yield item, entry.source if entry else ""
