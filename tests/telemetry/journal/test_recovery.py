"""Recovery: whatever a crash or a disk left, the clean part opens and no row comes twice."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.record import (
    EVENTS,
    SEGMENT_HEADER_BYTES,
    STREAMS,
    decode_record_header,
    encode_record,
)
from telemetry.journal.layout import (
    MARK_NAME,
    Mark,
    decode_mark,
    encode_mark,
    segment_path,
    segments,
)
from telemetry.journal.reader import JournalReader
from telemetry.journal.recovery import recover
from telemetry.journal.scan import CONTENT, HOLE, PAYLOAD, SEGMENT, Damage
from telemetry.journal.writer import JournalWriter
from tests.telemetry.journal.helpers import (
    frame,
    is_whole,
    numbers,
    only_segment,
    read_all,
    record_places,
    rows_of,
    stream,
    write,
)

KEY = stream("rank0")


def written(directory: Path, records: int = 6, segment_max: int = 10**9) -> Path:
    """A journal of two-row records, one sync each."""
    with JournalWriter(directory, segment_max) as writer:
        for _ in range(records):
            write(writer, 2)
            writer.sync()
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One segment of six records; copied by each test, never changed."""
    return written(tmp_path_factory.mktemp("whole") / "journal")


@pytest.fixture(scope="module")
def rotated(tmp_path_factory):
    """Several segments of a few records each; copied by each test, never changed."""
    return written(tmp_path_factory.mktemp("rotated") / "journal", records=20, segment_max=600)


def copied(journal: Path, directory: Path, *, with_mark: bool) -> Path:
    shutil.copytree(journal, directory / "run" / "journal")
    if not with_mark:
        (directory / "run" / "journal" / MARK_NAME).unlink()
    return directory / "run" / "journal"


def reopened(directory: Path) -> int:
    """Open for writing as a restarted sidecar does, add a record, and return its row."""
    with JournalWriter(directory) as writer:
        row = write(writer, 2)
        writer.sync()
    return row


def saved_tails(directory: Path) -> list[bytes]:
    quarantine = directory.parent / "quarantine"
    return [path.read_bytes() for path in quarantine.iterdir()] if quarantine.is_dir() else []


@pytest.mark.parametrize("with_mark", [False, True], ids=["never promised", "promised"])
def test_a_journal_cut_at_every_byte_of_its_last_three_records_opens(whole, tmp_path, with_mark):
    """Row 6 of the fault catalogue: the clean prefix opens, the cut tail is saved beside.

    Rows that were promised before the cut are a hole, and not given again.
    """
    places = record_places(only_segment(whole))
    data = only_segment(whole).read_bytes()
    for cut in range(places[-3][0], len(data)):
        directory = copied(whole, tmp_path / str(cut), with_mark=with_mark)
        only_segment(directory).write_bytes(data[:cut])
        left = [place for place in places if place[1] <= cut]
        clean = 2 * (len(left) - (len(places) - 6))

        row = reopened(directory)

        rows, damage = read_all(directory)
        assert row == (12 if with_mark else clean)
        assert numbers(rows) == [*range(clean), row, row + 1]
        assert [(d.kind, d.first_row, d.next_row) for d in damage] == (
            [(HOLE, clean, 12)] if with_mark else []
        )
        assert saved_tails(directory) == ([data[left[-1][1] : cut]] if cut > left[-1][1] else [])


@pytest.mark.parametrize("lost", [1, 60, 200])
def test_a_reader_that_saw_what_was_lost_misses_nothing_that_comes_after(whole, tmp_path, lost):
    """A disk took back what was promised: nothing new stands where the reader has been."""
    directory = copied(whole, tmp_path, with_mark=True)
    with JournalReader(directory) as reader:
        while not reader.read().is_end:
            pass
        path = only_segment(directory)
        path.write_bytes(path.read_bytes()[:-lost])
        with JournalWriter(directory) as writer:
            for _ in range(5):
                write(writer, 2)
                writer.sync()

        rows: list[int] = []
        while not (batch := reader.read()).is_end:
            rows += numbers(batch.rows)
            assert batch.damage == []

    assert rows == list(range(12, 22))


@given(data=st.data())
def test_any_flipped_bit_costs_its_record_and_no_other(whole, tmp_path_factory, data):
    """Row 8: in any record, in its header or its payload; the writer writes on behind.

    The last one too: it was promised, so it is damage and no torn tail.
    """
    places = record_places(only_segment(whole))
    place = data.draw(st.sampled_from(places))
    bit = data.draw(st.integers(place[0] * 8, place[1] * 8 - 1))
    directory = copied(whole, tmp_path_factory.mktemp("flip"), with_mark=True)
    content = bytearray(only_segment(directory).read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    only_segment(directory).write_bytes(content)
    gone = rows_of(only_segment(whole), place)

    before = read_all(directory)
    row = reopened(directory)
    after = read_all(directory)

    left = [row for row in range(12) if row not in gone]
    assert numbers(before[0]) == left
    assert row == 12 and numbers(after[0]) == [*left, 12, 13]
    assert before[1] and after[1] and saved_tails(directory) == []
    assert all(set(range(d.first_row, d.next_row or 0)) <= set(gone) for d in after[1])


@pytest.mark.parametrize("zeros", [1, 39, 40, 4096, 3 * 1024 * 1024])
def test_a_zero_filled_tail_is_a_torn_tail(whole, tmp_path, zeros):
    """Row 9: file systems leave that after a power cut."""
    directory = copied(whole, tmp_path, with_mark=True)
    with only_segment(directory).open("ab") as file:
        file.write(bytes(zeros))

    row = reopened(directory)

    rows, damage = read_all(directory)
    assert row == 12 and numbers(rows) == list(range(14)) and damage == []
    assert saved_tails(directory) == [bytes(zeros)]


@pytest.mark.parametrize("with_mark", [False, True])
def test_recovery_is_idempotent(whole, tmp_path, with_mark):
    """A crash in the middle of recovery, and recovery again. A torn tail is no damage."""
    directory = copied(whole, tmp_path, with_mark=with_mark)
    with only_segment(directory).open("ab") as file:
        file.write(b"torn")

    first, second, third = (recover(directory) for _ in range(3))

    assert first == second == third
    assert (first.next_row, first.damage) == (12, [])
    assert saved_tails(directory) == [b"torn"]


def test_a_damaged_record_is_reported_once(whole, tmp_path):
    """Also where others before or behind it are damaged too."""
    directory = copied(whole, tmp_path, with_mark=True)
    path = only_segment(directory)
    hit = [place for place in record_places(path) if rows_of(path, place)][0:5:2]
    content = bytearray(path.read_bytes())
    for _, end in hit:
        content[end - 1] ^= 1
    path.write_bytes(content)

    found = recover(directory)

    assert [(d.offset, d.end) for d in found.damage] == hit
    assert found.next_row == 12


def test_a_tail_that_was_saved_is_never_overwritten(whole, tmp_path):
    """Two crashes at one place leave two files."""
    directory = copied(whole, tmp_path, with_mark=False)
    for tail in (b"one", b"two"):
        with only_segment(directory).open("ab") as file:
            file.write(tail)
        recover(directory)

    assert sorted(saved_tails(directory)) == [b"one", b"two"]


def test_a_cut_on_a_record_boundary_in_a_middle_segment_is_a_named_hole(rotated, tmp_path):
    """Row 7: no checksum is wrong there."""
    directory = copied(rotated, tmp_path, with_mark=True)
    middle, behind = segments(directory)[1:3]
    places = record_places(middle.path)
    gone = rows_of(middle.path, places[-1])
    middle.path.write_bytes(middle.path.read_bytes()[: places[-1][0]])

    row = reopened(directory)

    rows, damage = read_all(directory)
    assert [(d.kind, d.first_row, d.next_row) for d in damage] == [
        (HOLE, gone.start, behind.first_row)
    ]
    assert numbers(rows) == [r for r in range(row + 2) if r not in gone]


@pytest.mark.parametrize("which", [0, 1, -2])
def test_a_missing_segment_is_a_named_hole(rotated, tmp_path, which):
    """Row 7: by the rows that went with it. The first segment too."""
    directory = copied(rotated, tmp_path, with_mark=True)
    found = segments(directory)
    missing = found[which]
    end = found[found.index(missing) + 1].first_row
    missing.path.unlink()

    row = reopened(directory)

    rows, damage = read_all(directory)
    assert [(d.kind, d.first_row, d.next_row) for d in damage] == [(HOLE, missing.first_row, end)]
    assert numbers(rows) == [r for r in range(row + 2) if not missing.first_row <= r < end]


def test_a_lost_last_segment_does_not_give_its_rows_again(rotated, tmp_path):
    """The mark remembers what was promised."""
    directory = copied(rotated, tmp_path, with_mark=True)
    segments(directory)[-1].path.unlink()
    last = segments(directory)[-1]
    end = rows_of(last.path, record_places(last.path)[-1]).stop

    row = reopened(directory)

    rows, damage = read_all(directory)
    assert row == 40
    assert numbers(rows) == [*range(end), 40, 41]
    assert [(d.kind, d.first_row, d.next_row) for d in damage] == [(HOLE, end, 40)]


@given(data=st.data())
def test_a_damaged_header_of_the_last_segment_gives_no_row_twice(rotated, tmp_path_factory, data):
    """Its records are found all the same, with and without the mark."""
    with_mark = data.draw(st.booleans())
    directory = copied(rotated, tmp_path_factory.mktemp("header"), with_mark=with_mark)
    last = segments(directory)[-1]
    bit = data.draw(st.integers(0, 8 * (record_places(last.path)[0][0]) - 1))
    content = bytearray(last.path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    last.path.write_bytes(content)

    with JournalWriter(directory) as writer:
        durable_seq = writer.durable_seq(KEY)
    row = reopened(directory)

    rows, damage = read_all(directory)
    assert row == 40 and durable_seq == 39
    assert numbers(rows) == list(range(42))
    assert [(d.kind, d.first_row, d.next_row) for d in damage] == [
        (SEGMENT, last.first_row, last.first_row)
    ]


def test_a_middle_segment_with_a_damaged_header_is_read_all_the_same(rotated, tmp_path):
    """Also by a reader that starts in it, and knows no stream yet."""
    directory = copied(rotated, tmp_path, with_mark=True)
    middle = segments(directory)[1]
    content = bytearray(middle.path.read_bytes())
    content[30] ^= 1
    middle.path.write_bytes(content)

    assert numbers(read_all(directory)[0]) == list(range(40))
    assert numbers(read_all(directory, middle.first_row + 1)[0]) == list(
        range(middle.first_row + 1, 40)
    )


def test_two_last_segments_with_damaged_headers_are_taken_in_in_their_order(tmp_path):
    """The later one counts on from the earlier one, and a stream of that one is not forgotten."""
    directory = tmp_path / "journal"
    with JournalWriter(directory, 600) as writer:
        for source in ("rank0", "rank0", "rank1"):
            count = len(segments(directory))
            write(writer, 2, source)
            while len(segments(directory)) == count:
                writer.sync()
                write(writer, 2)
        write(writer, 2)
        writer.sync()
        next_row = writer.next_row
    hit = segments(directory)[-2:]
    for segment in hit:
        content = bytearray(segment.path.read_bytes())
        content[30] ^= 1
        segment.path.write_bytes(content)

    found = recover(directory)

    last = {entry.source: entry.durable_seq for entry in found.streams.values()}
    assert found.next_row == next_row and last == {"rank0": next_row - 3, "rank1": 1}
    assert [d[:5] for d in reversed(found.damage)] == [
        (SEGMENT, 0, segment.path.stat().st_size, segment.first_row, None) for segment in hit
    ]


def test_recovery_tells_what_it_found(rotated, tmp_path):
    """Damage of records that were promised, and rows that are gone with a lost segment."""
    directory = copied(rotated, tmp_path / "last", with_mark=True)
    last = segments(directory)[-1].path
    start, end = record_places(last)[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)

    damaged, hole = recover(directory).damage

    assert (damaged.offset, damaged.end, damaged.first_row) == (start, end, hole.first_row)
    lost = copied(rotated, tmp_path / "lost", with_mark=True)
    segments(lost)[-1].path.unlink()
    before = segments(lost)[-1].path
    next_row = rows_of(before, record_places(before)[-1]).stop
    assert recover(lost).damage == [Damage(HOLE, 0, 0, next_row, 40, "durable rows")]


def test_a_stream_that_begins_after_a_restart_gets_a_number_of_its_own(tmp_path):
    """Though the last segment, just begun, has no record of those that its header names."""
    with JournalWriter(tmp_path, 600) as writer:
        for source in ("rank0", "rank1", "rank2"):
            write(writer, 2, source)
        while len(segments(tmp_path)) == 1:
            write(writer, 2)
            writer.sync()
        before = {s: writer.durable_seq(stream(s)) for s in ("rank0", "rank1", "rank2")}

    with JournalWriter(tmp_path) as writer:
        write(writer, 3, "rank7")
        write(writer, 1, "rank2")
        writer.sync()

    with JournalWriter(tmp_path) as writer:
        after = {s: writer.durable_seq(stream(s)) for s in (*before, "rank7")}
        assert list(writer.recovered.streams) == [0, 1, 2, 3]
    assert after == before | {"rank2": before["rank2"] + 1, "rank7": 2}
    assert [row.source for row in read_all(tmp_path)[0]][-4:] == [*["rank7"] * 3, "rank2"]


def test_rows_of_damaged_records_in_a_segment_with_a_damaged_header_are_not_given_again(
    rotated, tmp_path
):
    """A mark that would tell of them is missing, too."""
    directory = copied(rotated, tmp_path, with_mark=False)
    last = segments(directory)[-1].path
    start, end = record_places(last)[-1]
    content = bytearray(last.read_bytes())
    content[30] ^= 1
    content[-1] ^= 1
    last.write_bytes(content)

    found = recover(directory)

    assert found.next_row == 40
    assert [(d.kind, d.offset, d.end) for d in found.damage] == [
        (SEGMENT, 0, len(content)),
        (PAYLOAD, start, end),
    ]


def test_a_segment_that_has_nothing_but_a_damaged_header_costs_one_row_number(tmp_path):
    """The one in its name: a new segment can't have the same."""
    written(tmp_path)
    with JournalWriter(tmp_path, 1) as writer:
        write(writer, 2)
        writer.sync()
    last = segments(tmp_path)[-1]
    content = bytearray(last.path.read_bytes())
    content[30] ^= 1
    last.path.write_bytes(content)

    assert last.first_row == 14 and recover(tmp_path).next_row == 15


def test_a_table_that_cannot_be_decoded_is_told(whole, tmp_path):
    """Its checksum is right: it was written so, by another version."""
    directory = copied(whole, tmp_path, with_mark=False)
    path = only_segment(directory)
    size = path.stat().st_size
    record = encode_record(STREAMS, 5, 12, 0, 0, b"\xc1")
    path.write_bytes(path.read_bytes() + record)

    (damage,) = recover(directory).damage

    assert damage[:5] == (CONTENT, size, size + len(record), 12, 12)


def test_behind_an_old_mark_the_last_segment_goes_on(rotated, tmp_path):
    """The mark's offset is one in an earlier segment, and says nothing of this one."""
    directory = copied(rotated, tmp_path, with_mark=True)
    (directory / MARK_NAME).write_bytes(encode_mark(Mark(0, 10**6, 2)))
    before = segments(directory)

    row = reopened(directory)

    assert row == 40 and segments(directory) == before


@pytest.mark.parametrize("length", [0, 1, SEGMENT_HEADER_BYTES - 1, SEGMENT_HEADER_BYTES, -1])
def test_a_crash_while_a_segment_was_created_leaves_no_trace(rotated, tmp_path, length):
    """At any length of its header: the segment before goes on, or this one does."""
    directory = copied(rotated, tmp_path, with_mark=True)
    header = segments(directory)[-1].path.read_bytes()[
        : record_places(segments(directory)[-1].path)[0][0]
    ]
    torn = header[:length] if length >= 0 else header[:-1]
    segment_path(directory, 40).write_bytes(torn)

    with JournalWriter(directory, 600) as writer:
        assert writer.next_row == 40
        for _ in range(10):
            write(writer, 2)
            writer.sync()

    rows, damage = read_all(directory)
    assert numbers(rows) == list(range(60)) and damage == []
    assert is_whole(directory)
    assert saved_tails(directory) == ([torn] if torn else [])
    names = [path.name for path in directory.parent.glob("quarantine/*")]
    assert names == ([f"{40:020d}.seg.0.tail"] if torn else [])
    for first_row in (40, 41, 45, 59):
        assert numbers(read_all(directory, first_row)[0]) == list(range(first_row, 60))


def test_a_whole_segment_without_records_goes_on(tmp_path):
    """The crash came right after it was created."""
    directory = tmp_path / "journal"
    for _ in range(3):
        with JournalWriter(directory) as writer:
            assert writer.next_row == 0

    assert reopened(directory) == 0
    assert numbers(read_all(directory)[0]) == [0, 1]


def test_a_stream_number_is_never_given_twice(whole, tmp_path):
    """Where a table record is damaged, its number may still stand in records."""
    directory = copied(whole, tmp_path, with_mark=True)
    path = only_segment(directory)
    content = bytearray(path.read_bytes())
    for _, end in record_places(path)[:2]:  # both copies of the table
        content[end - 1] ^= 1
    path.write_bytes(content)

    with JournalWriter(directory) as writer:
        row = write(writer, 1, "rank7")
        writer.sync()

    rows, damage = read_all(directory)
    data = memoryview(path.read_bytes())
    last = decode_record_header(data, record_places(path)[-1][0])
    assert [(r.row, r.source) for r in rows] == [(row, "rank7")]
    assert damage and last is not None and last.stream == 1


def test_records_that_are_damaged_with_everything_behind_them_are_saved(whole, tmp_path):
    """Without a mark that says otherwise it is a torn tail, whatever it looks like."""
    directory = copied(whole, tmp_path, with_mark=False)
    path = only_segment(directory)
    place = record_places(path)[-2]
    content = path.read_bytes()
    path.write_bytes(content[: place[0]] + bytes(len(content) - place[0]))

    row = reopened(directory)

    assert row == 8 and saved_tails(directory) == [bytes(len(content) - place[0])]


def test_a_hole_behind_the_mark_is_where_the_journal_ends(whole, tmp_path):
    """A power cut kept a later block and not an earlier one: neither was promised."""
    directory = copied(whole, tmp_path, with_mark=True)
    path = only_segment(directory)
    promised, hole, last = record_places(path)[-3:]
    (directory / MARK_NAME).write_bytes(encode_mark(Mark(0, promised[1], 8)))
    content = bytearray(path.read_bytes())
    content[hole[1] - 1] ^= 1
    path.write_bytes(content)

    row = reopened(directory)

    rows, damage = read_all(directory)
    assert row == 8 and numbers(rows) == list(range(10)) and damage == []
    assert saved_tails(directory) == [bytes(content[hole[0] : last[1]])]


def test_damage_before_a_lost_segment_costs_its_record_and_no_other(rotated, tmp_path):
    """The mark tells of the lost one: all that is left here was promised."""
    directory = copied(rotated, tmp_path, with_mark=True)
    segments(directory)[-1].path.unlink()
    last = segments(directory)[-1]
    place = record_places(last.path)[-2]
    gone, end = rows_of(last.path, place), rows_of(last.path, record_places(last.path)[-1]).stop
    content = bytearray(last.path.read_bytes())
    content[place[1] - 1] ^= 1
    last.path.write_bytes(content)

    row = reopened(directory)

    rows, _ = read_all(directory)
    assert row == 40 and saved_tails(directory) == []
    assert numbers(rows) == [*(r for r in range(end) if r not in gone), 40, 41]


def test_behind_an_old_mark_damage_before_a_damaged_header_forgets_no_stream(tmp_path):
    """Rows behind it are there, so their seqs are had: a stream must not say them again."""
    directory = tmp_path / "run" / "journal"
    with JournalWriter(directory, 600) as writer:
        write(writer, 2)
        writer.sync()
        mark = (directory / MARK_NAME).read_bytes()
        write(writer, 2)
        writer.sync()
        write(writer, 2, "rank1")
        writer.sync()
        while len(segments(directory)) < 2:
            write(writer, 2)
            writer.sync()
    first, last = segments(directory)
    data = memoryview(first.path.read_bytes())
    damaged = next(
        place
        for place in record_places(first.path)
        if (header := decode_record_header(data, place[0])) and header.row == 2 and header.count
    )
    for path, at in ((first.path, damaged[1] - 1), (last.path, 30)):
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)
    (directory / MARK_NAME).write_bytes(mark)

    with JournalWriter(directory) as writer:
        assert writer.durable_seq(stream("rank1")) == 1


# --- reading what nobody writes any more


def test_behind_an_old_mark_a_shorter_last_segment_is_read_too(tmp_path):
    """The mark's offset is one in the segment before."""
    with JournalWriter(tmp_path, 600) as writer:
        while len(segments(tmp_path)) < 2:
            mark = (tmp_path / MARK_NAME).read_bytes()
            write(writer, 2)
            writer.sync()
        end = writer.next_row
    (tmp_path / MARK_NAME).write_bytes(mark)
    assert segments(tmp_path)[-1].path.stat().st_size <= decode_mark(mark).offset

    rows, damage = read_all(tmp_path, is_recorded=True)

    assert (numbers(rows), damage) == (list(range(end)), [])


@pytest.mark.parametrize("segment_max", [10**9, 600], ids=["one segment", "several"])
def test_behind_an_old_mark_a_recorded_journal_is_read_to_its_end(tmp_path, segment_max):
    """A power cut took the newest marks; what was acknowledged is on the disk."""
    directory = tmp_path / "journal"
    with JournalWriter(directory, segment_max) as writer:
        write(writer, 2)
        writer.sync()
        mark = (directory / MARK_NAME).read_bytes()
        for _ in range(12):
            write(writer, 2)
            writer.sync()
    (directory / MARK_NAME).write_bytes(mark)
    before = {path: path.read_bytes() for path in directory.iterdir()}

    rows, damage = read_all(directory, is_recorded=True)

    assert (numbers(rows), damage) == (list(range(26)), [])
    assert {path: path.read_bytes() for path in directory.iterdir()} == before
    assert numbers(read_all(directory)[0]) == [0, 1]


def test_while_somebody_writes_nothing_behind_the_mark_is_read(tmp_path):
    """It may not be on disk yet."""
    with JournalWriter(tmp_path) as writer:
        write(writer, 2)
        writer.sync()
        with only_segment(tmp_path).open("ab") as file:
            file.write(encode_record(EVENTS, 0, 2, 2, 1, frame(2, 1)))

        while_written = read_all(tmp_path, is_recorded=True)
    afterwards = read_all(tmp_path, is_recorded=True)

    assert (numbers(while_written[0]), while_written[1]) == ([0, 1], [])
    assert (numbers(afterwards[0]), afterwards[1]) == ([0, 1, 2], [])


def test_a_writer_gets_the_lock_that_a_reader_has_only_asked_about(tmp_path, monkeypatch):
    """The question holds it for a moment."""
    written(tmp_path)
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda _: os.close(fd))

    with JournalWriter(tmp_path) as writer:
        assert writer.next_row == 12


@given(data=st.data())
def test_a_recorded_journal_is_read_as_recovery_will_leave_it(
    whole, tmp_path_factory, data: st.DataObject
):
    """Whatever a power cut left behind the mark: no row is shown that a writer would cut."""
    directory = copied(whole, tmp_path_factory.mktemp("cut"), with_mark=True)
    path = only_segment(directory)
    places = record_places(path)
    promised = places[-data.draw(st.integers(1, 5))][0]
    header = decode_record_header(memoryview(path.read_bytes()), promised)
    assert header is not None
    (directory / MARK_NAME).write_bytes(encode_mark(Mark(0, promised, header.row)))
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(promised, len(content) - 1))
    end = data.draw(st.integers(start, len(content)))
    content[start:end] = bytes(end - start)
    path.write_bytes(content[: data.draw(st.integers(promised, len(content)))])

    rows, damage = read_all(directory, is_recorded=True)

    with JournalWriter(directory) as writer:
        assert numbers(rows) == list(range(writer.next_row))
    assert damage == [] and read_all(directory) == (rows, [])


def test_behind_an_old_mark_and_damage_before_it_a_recorded_journal_is_read_to_its_end(
    whole, tmp_path
):
    """What was promised and is damaged is no end."""
    directory = copied(whole, tmp_path, with_mark=True)
    path = only_segment(directory)
    damaged, promised = record_places(path)[-4], record_places(path)[-3]
    gone = rows_of(path, damaged)
    mark = Mark(0, promised[0], rows_of(path, promised).start)
    (directory / MARK_NAME).write_bytes(encode_mark(mark))
    content = bytearray(path.read_bytes())
    content[damaged[1] - 1] ^= 1
    path.write_bytes(content)

    rows, damage = read_all(directory, is_recorded=True)

    assert numbers(rows) == [row for row in range(12) if row not in gone]
    assert [(d.offset, d.end) for d in damage] == [damaged]
