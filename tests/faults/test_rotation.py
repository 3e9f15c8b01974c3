"""Rotations that close streams, or that fail, with the power cut at every system call."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from typing import Any
from unittest import mock

from shared.files import sync_directory, sync_file
from telemetry.journal.closed import CLOSED_NAME
from telemetry.journal.layout import segment_path, segments
from telemetry.journal.writer import JournalWriter
from tests.faults.crash_points import cut_everywhere
from tests.telemetry.journal.helpers import RUN, read_all, stream, write

SEGMENT_MAX_BYTES = 500
WORKERS = ("worker0", "worker1")
SOURCES = (*WORKERS, "rank0")
Promises = dict[str, Any]


def journal_of(root: Path) -> Path:
    return root / RUN / "journal"


def note(writer: JournalWriter, promises: Promises) -> None:
    for source in SOURCES:
        promises[source] = max(promises.get(source, -1), writer.durable_seq(stream(source)))


def fill(writer: JournalWriter, promises: Promises) -> None:
    """Rows of another stream, until the next segment has begun."""
    for _ in range(3):
        write(writer, 3)
        writer.sync()
        note(writer, promises)


def open_and_end_twice(root: Path, promises: Promises) -> None:
    """Workers whose streams are closed, go on, and are closed again: the list grows twice."""
    with JournalWriter(journal_of(root), SEGMENT_MAX_BYTES) as writer:
        fill(writer, promises)
        for count in (1, 3):
            for source in WORKERS:
                write(writer, count, source)
                writer.sync()
                note(writer, promises)
                writer.end_stream(stream(source))
            fill(writer, promises)
            path = journal_of(root) / CLOSED_NAME
            if count == 1 and path.exists():
                # The kernel writes back when it likes: this part of the list is on disk.
                sync_file(path)


def check_numbers(root: Path, promises: Promises) -> None:
    """Each stream goes on behind what it was told is on disk, and has every number once."""
    with JournalWriter(journal_of(root), SEGMENT_MAX_BYTES) as writer:
        had = {source: writer.durable_seq(stream(source)) for source in SOURCES}
    rows, damage = read_all(journal_of(root))
    assert damage == []
    for source, last in had.items():
        assert last >= promises.get(source, -1)
        assert [row.seq for row in rows if row.source == source] == list(range(last + 1))


def test_a_closed_stream_keeps_its_place_wherever_the_power_goes() -> None:
    """Headers name it no more, so the list has to be on disk before them, with its name; an
    older list would have its last events journaled a second time."""
    assert cut_everywhere(open_and_end_twice, check_numbers, throws=10) > 40


def fail_to_rotate(root: Path, promises: Promises) -> None:
    """The directory with a new segment's name can't be synced: the old segment goes on."""
    turns = itertools.count()

    def failing(directory: Path) -> None:
        sync_directory(directory)
        if next(turns) % 2 == 0:
            # The name may be on disk all the same. What takes it away again is not refused.
            raise OSError(errno.ENOSPC, "No space left on device")

    JournalWriter(journal_of(root)).close()
    with (
        mock.patch("telemetry.journal.segment.sync_directory", failing),
        JournalWriter(journal_of(root), SEGMENT_MAX_BYTES) as writer,
    ):
        for _ in range(2):
            fill(writer, promises)
        assert len(segments(journal_of(root))) == 1


def test_a_segment_that_was_taken_away_does_not_come_back() -> None:
    """Its header would hide the rows that the old one has got since."""
    assert cut_everywhere(fail_to_rotate, check_numbers, throws=8) > 30


def set_aside(root: Path, promises: Promises) -> None:
    """A segment whose creation was cut short lies in the way, durably; the old one goes on."""
    with JournalWriter(journal_of(root)) as writer:
        fill(writer, promises)
        torn = segment_path(journal_of(root), writer.durable_row)
    torn.write_bytes(b"TELJRNL")
    sync_file(torn)
    sync_directory(torn.parent)
    promises["torn"] = True
    with JournalWriter(journal_of(root)) as writer:
        fill(writer, promises)


def check_set_aside(root: Path, promises: Promises) -> None:
    check_numbers(root, promises)
    saved = [path.read_bytes() for path in (root / RUN).glob("quarantine/*.tail")]
    assert b"TELJRNL" in saved or not promises.get("torn")


def test_a_segment_that_was_cut_short_is_saved_and_hides_no_row() -> None:
    """First it is saved, then it goes. If it comes back, over the rows written since, it goes
    again: opening for the check does that.
    """
    assert cut_everywhere(set_aside, check_set_aside, throws=8) > 30
