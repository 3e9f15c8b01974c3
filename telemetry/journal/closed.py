"""Closed streams: those that have ended, kept apart from the headers of segments.

In: the table entries of streams from which no more events are expected.
Out: the same entries, when the journal is opened again.
Never: loses an entry: it is on disk here before a segment header is written without it.

    DATA_DIR/runs/<run_id>/journal/closed    table records, one behind the other

A run of days has thousands of short-lived workers, and segment headers that name them all
would grow without end. With this file a stream that sends again, late, still continues
under its old number.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, NamedTuple

from shared.files import sync_directory, write_all
from shared.record import (
    STREAMS,
    CorruptRecord,
    StreamEntry,
    decode_table,
    encode_record,
    encode_table,
)
from telemetry.journal.scan import Damage, scan

CLOSED_NAME: Final = "closed"
ENTRIES_A_RECORD: Final = 1_000


class Closed(NamedTuple):
    """The content of the file of closed streams."""

    streams: dict[int, StreamEntry]
    size: int
    """Bytes of its whole records; bytes behind them are a record cut short by a crash."""

    is_damaged: bool
    """True if some entries can't be read; the segments hold them too."""


def read_closed(directory: Path) -> Closed:
    """Read the closed streams of a journal. Nothing is changed."""
    try:
        data = (directory / CLOSED_NAME).read_bytes()
    except FileNotFoundError:
        return Closed({}, 0, False)
    except OSError:
        return Closed({}, 0, True)
    streams: dict[int, StreamEntry] = {}
    size, is_damaged = 0, False
    for item in scan(memoryview(data), 0, is_end=True):
        if isinstance(item, Damage):
            # Either a crash tore the last record, or a whole record was damaged later.
            is_damaged = True
            continue
        try:
            for number, entry in decode_table(item.payload).items():
                streams[number] = entry
        except CorruptRecord:
            is_damaged = True
        size = item.end
    return Closed(streams, size, is_damaged)


def append_closed(directory: Path, size: int, streams: dict[int, StreamEntry]) -> int:
    """Add entries behind the whole records, durably, and return the new size.

    Raises:
        OSError: nothing was added.
    """
    items = list(streams.items())
    parts = [items[at : at + ENTRIES_A_RECORD] for at in range(0, len(items), ENTRIES_A_RECORD)]
    data = b"".join(encode_record(STREAMS, 0, 0, 0, 0, encode_table(dict(p))) for p in parts)
    fd = os.open(
        directory / CLOSED_NAME, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
    )
    try:
        os.ftruncate(fd, size)
        write_all(fd, data, size)
        os.fdatasync(fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, size)
        raise
    finally:
        os.close(fd)
    if size == 0:
        sync_directory(directory)
    return size + len(data)
