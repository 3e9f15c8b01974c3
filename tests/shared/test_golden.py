"""One segment as it was first written: it must decode to exactly these events for ever."""

from __future__ import annotations

import shutil

from shared.record import decode_segment_header
from telemetry.journal.reader import JournalReader
from tests.shared.golden.make_golden import (
    EVENTS_OF_HARDWARE,
    EVENTS_OF_RANK0,
    FIRST_ROW,
    HARDWARE,
    PATH,
    RANK0,
    UUID,
    segment,
    wall_ns,
)
from tests.shared.strategies import same

SIZE = 1216
"""Of the file; a new one that decodes as well would guard nothing."""


def test_the_golden_segment_decodes_to_exactly_its_events(tmp_path):
    """Every type of event, two streams, a table in the header and one in a record."""
    shutil.copy(PATH, tmp_path)

    with JournalReader(tmp_path, FIRST_ROW) as reader:
        batch = reader.read()

    rank0 = [row for row in batch.rows if row.source == "rank0"]
    hardware = [row for row in batch.rows if row.source != "rank0"]
    assert batch.damage == []
    assert [row.row for row in batch.rows] == list(range(FIRST_ROW, FIRST_ROW + 9))
    assert [row.envelope.wall_ns for row in batch.rows] == [wall_ns(r.row) for r in batch.rows]
    assert same([row.envelope.event() for row in rank0], EVENTS_OF_RANK0)
    assert same([row.envelope.event() for row in hardware], EVENTS_OF_HARDWARE)
    assert [row.seq for row in rank0] == list(range(7, 14))
    assert {row.session for row in rank0} == {RANK0.session}
    assert {row.session for row in hardware} == {HARDWARE.session}


def test_the_golden_header_decodes_to_exactly_its_fields():
    """And the file is the one that was committed."""
    data = PATH.read_bytes()

    header = decode_segment_header(memoryview(data))

    assert len(data) == SIZE
    assert header is not None
    assert (header.journal_uuid, header.first_row) == (UUID, FIRST_ROW)
    assert header.streams == {3: RANK0}


def test_what_is_written_today_is_byte_for_byte_what_was_written_then():
    """A change of the format has to be one on purpose, with a new version number."""
    assert segment() == PATH.read_bytes()
