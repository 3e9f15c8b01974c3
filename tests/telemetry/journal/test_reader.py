"""Reading: from any row, while it is written, and never beyond what is durable."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.record import EVENTS, encode_record
from telemetry.journal.layout import Mark, encode_mark, read_mark, segment_path, segments
from telemetry.journal.place import is_at
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.scan import CONTENT, HOLE, REST, SEGMENT, TAIL, Damage, Found, scan
from telemetry.journal.writer import JournalWriter
from tests.telemetry.journal.helpers import (
    frame,
    numbers,
    only_segment,
    read_all,
    record_places,
    stream,
    write,
)

SEGMENT_MAX = 600


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """60 rows in records of three, several segments; read only."""
    directory = tmp_path_factory.mktemp("journal")
    with JournalWriter(directory, SEGMENT_MAX) as writer:
        for i in range(20):
            write(writer, 3, f"rank{i % 2}")
            writer.sync()
    return directory


@pytest.mark.parametrize("first_row", range(62))
def test_a_reader_starts_at_any_row(journal, first_row):
    """Also in the middle of a record, and at or behind the end."""
    rows, damage = read_all(journal, first_row)

    assert numbers(rows) == list(range(first_row, 60)) and damage == []
    assert all(row.source == f"rank{row.row // 3 % 2}" for row in rows)


def test_a_place_without_a_journal_is_named(tmp_path):
    """Missing, or empty."""
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NotAJournal, match=str(directory)):
            JournalReader(directory)


@settings(max_examples=40)
@given(
    acts=st.lists(st.sampled_from(["append", "sync", "read", "read", "reopen"]), max_size=60),
    first_row=st.integers(0, 20),
)
def test_a_live_reader_misses_nothing_and_sees_nothing_that_is_not_durable(
    tmp_path_factory, acts, first_row
):
    """Promise 2: across rotations and restarts of the writer."""
    directory = tmp_path_factory.mktemp("live")
    writer = JournalWriter(directory, SEGMENT_MAX)
    reader = JournalReader(directory, first_row)
    seen: list[int] = []
    damage: list[Damage] = []

    def poll() -> None:
        batch = reader.read()
        seen.extend(numbers(batch.rows))
        damage.extend(batch.damage)
        assert not seen or seen[-1] < writer.durable_row

    for act in acts:
        if act == "append":
            write(writer, 4)
        elif act == "sync":
            writer.sync()
        elif act == "read":
            poll()
        else:
            writer.close()
            writer = JournalWriter(directory, SEGMENT_MAX)
    for _ in range(len(acts) + 2):
        poll()
    writer.close()
    reader.close()

    assert seen == list(range(first_row, writer.durable_row)) and damage == []


def write_unsynced(directory, row):
    """A record as it lies in the segment before its sync."""
    with only_segment(directory).open("ab") as file:
        file.write(encode_record(EVENTS, 0, row, row, 1, frame(row, 1)))


numbers_64 = st.integers(0, 2**64 - 1) | st.integers(0, 400)
marks = st.builds(Mark, numbers_64, numbers_64, numbers_64)


def test_bytes_behind_the_mark_are_not_read(tmp_path):
    """They were written and not synced: a power cut may take them."""
    with JournalWriter(tmp_path) as writer:
        write(writer, 2)
        writer.sync()
        write_unsynced(tmp_path, 2)

        assert numbers(read_all(tmp_path)[0]) == [0, 1]


@pytest.mark.parametrize("bit", range(28 * 8))
def test_a_mark_with_a_flipped_bit_is_not_believed(tmp_path, bit):
    """Fault 44: whatever it says, nothing behind the last sync is read. Once another row
    is synced, all are."""
    with JournalWriter(tmp_path) as writer, JournalReader(tmp_path) as earlier:
        write(writer, 2)
        writer.sync()
        assert numbers(earlier.read().rows) == [0, 1]
        write_unsynced(tmp_path, 2)
        mark = bytearray((tmp_path / "durable").read_bytes())
        mark[bit // 8] ^= 1 << bit % 8
        (tmp_path / "durable").write_bytes(mark)

        with JournalReader(tmp_path) as reader:
            assert reader.read() == ([], [], True) and reader.is_blind
            assert earlier.read() == ([], [], True) and not earlier.is_blind
            os.truncate(only_segment(tmp_path), writer._offset)
            write(writer, 1)
            writer.sync()

            assert numbers(reader.read().rows) == [0, 1, 2] and not reader.is_blind
        assert numbers(earlier.read().rows) == [2]


@example(content=encode_mark(Mark(0, 0, 2**64 - 1)))
@example(content=encode_mark(Mark(2**63, 0, 2**63)))
@example(content=encode_mark(Mark(5, 0, 3)))
@given(content=st.binary(max_size=40) | st.builds(encode_mark, marks))
def test_whatever_the_mark_holds_no_row_is_lost(tmp_path_factory, content):
    """Fault 44: the journal opens, with all that was in it, and goes on."""
    directory = tmp_path_factory.mktemp("journal")
    with JournalWriter(directory) as writer:
        write(writer, 3)
        writer.sync()
    (directory / "durable").write_bytes(content)
    rows_before, _ = read_all(directory, is_recorded=True)

    with JournalWriter(directory) as writer:
        row = write(writer, 1)
        writer.sync()

    rows, _ = read_all(directory)
    assert [r.row for r in rows_before] == list(range(len(rows_before)))
    assert [r.row for r in rows] == [0, 1, 2, row] and row >= 3


def test_a_journal_that_nobody_writes_is_read_without_its_mark(tmp_path):
    """What is there, is on disk, as recovery would say."""
    with JournalWriter(tmp_path) as writer:
        write(writer, 3)
        writer.sync()
    (tmp_path / "durable").write_bytes(b"damaged")

    for is_recorded in (False, True):
        assert numbers(read_all(tmp_path, is_recorded=is_recorded)[0]) == [0, 1, 2]


def test_the_end_is_told_and_reading_goes_on_after_it(tmp_path):
    """is_end means nothing more now; it is no error and no end of the reader."""
    with JournalWriter(tmp_path) as writer, JournalReader(tmp_path) as reader:
        assert reader.read() == ([], [], True)
        write(writer, 1)
        assert reader.read().is_end
        writer.sync()

        batch = reader.read()

        assert numbers(batch.rows) == [0] and not batch.is_end
        assert reader.read().is_end
        assert reader.next_row == 1


def test_a_segment_that_is_rotated_between_two_reads_is_read_to_its_end(tmp_path):
    """The mark is of the next segment by then."""
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer, JournalReader(tmp_path) as reader:
        write(writer, 1)
        writer.sync()
        assert numbers(reader.read().rows) == [0]
        while len(segments(tmp_path)) < 3:
            write(writer, 2)
            writer.sync()

        seen: list[int] = []
        while not (batch := reader.read()).is_end:
            seen += numbers(batch.rows)
            assert batch.damage == []

        assert seen == list(range(1, writer.durable_row))


@pytest.mark.parametrize("written", [0, 20])
def test_a_segment_that_is_being_created_is_not_looked_at_before_the_mark_names_it(
    tmp_path, written
):
    """Its header may be half there."""
    with JournalWriter(tmp_path) as writer, JournalReader(tmp_path) as reader:
        write(writer, 3)
        writer.sync()
        assert numbers(reader.read().rows) == [0, 1, 2]
        header = only_segment(tmp_path).read_bytes()
        segment_path(tmp_path, 3).write_bytes(header[:written])

        assert reader.read() == ([], [], True)
        with JournalReader(tmp_path, 3) as another:
            assert another.read() == ([], [], True)


@pytest.mark.parametrize("first_row", [0, 2, 5])
def test_a_hole_begins_where_reading_does(journal, tmp_path, first_row):
    """The rows before were not asked for."""
    for segment in segments(journal)[1:]:
        os.link(segment.path, tmp_path / segment.path.name)
    second = segments(journal)[1].first_row

    rows, damage = read_all(tmp_path, first_row)

    assert [(d.kind, d.first_row, d.next_row) for d in damage] == [(HOLE, first_row, second)]
    assert numbers(rows) == list(range(second, 60))


def test_a_journal_without_its_mark_is_read_to_its_end(journal, tmp_path):
    """A copy of the segments is a journal."""
    for segment in segments(journal):
        os.link(segment.path, tmp_path / segment.path.name)

    rows, damage = read_all(tmp_path)

    assert read_mark(tmp_path) is None
    assert numbers(rows) == list(range(60)) and damage == []


def test_a_segment_of_which_nothing_can_be_read_is_told_of(journal, tmp_path):
    """Its rows are gone, and those of the others are read."""
    found = segments(journal)
    for segment in found:
        content = segment.path.read_bytes()
        is_damaged = segment == found[1]
        (tmp_path / segment.path.name).write_bytes(b"\xff" * 100 if is_damaged else content)

    rows, damage = read_all(tmp_path)

    gone = range(found[1].first_row, found[2].first_row)
    assert [row.row for row in rows] == [n for n in range(60) if n not in gone]
    assert damage[0].kind == SEGMENT and damage[0].first_row == gone.start


def test_damage_before_the_first_row_is_not_told_again(tmp_path):
    """A sink that resumes behind it has told of it already."""
    with JournalWriter(tmp_path) as writer:
        for _ in range(4):
            write(writer, 2)
        writer.sync()
    path = only_segment(tmp_path)
    places = record_places(path)
    content = bytearray(path.read_bytes())
    content[places[-3][1] - 1] ^= 1  # the record of rows 2 and 3
    path.write_bytes(content)

    assert [(d.first_row, d.next_row) for d in read_all(tmp_path, 2)[1]] == [(2, 4)]
    assert [(d.first_row, d.next_row) for d in read_all(tmp_path, 3)[1]] == [(2, 4)]
    assert read_all(tmp_path, 4)[1] == []
    assert numbers(read_all(tmp_path, 3)[0]) == [4, 5, 6, 7]


@pytest.mark.parametrize("payload", [b"\x90", b"\xc1", frame(0, 3), b"\x92\x01\x02"])
def test_a_record_with_undecodable_events_is_damage_and_the_next_one_is_read(tmp_path, payload):
    """Whole on disk and wrong all the same: other events than its header counts."""
    with JournalWriter(tmp_path) as writer:
        writer.append(stream("rank0"), 0, 2, payload)
        write(writer, 1)
        writer.sync()

    rows, damage = read_all(tmp_path)

    place = record_places(only_segment(tmp_path))[2]  # behind the two copies of the table
    assert numbers(rows) == [2]
    assert [d[:5] for d in damage] == [(CONTENT, *place, 0, 2)]


@pytest.mark.parametrize("chunk", [2 * 1024 * 1024 + 100, 4 * 1024 * 1024])
def test_records_across_the_ends_of_chunks_are_read_once(tmp_path, chunk):
    """A walk stops before a record that needs the bytes of the next chunk."""
    with JournalWriter(tmp_path) as writer:
        for _ in range(60):
            write(writer, 1, size=150_000)
        writer.sync()

    rows, damage = read_all(tmp_path, chunk_bytes=chunk)

    assert numbers(rows) == list(range(60)) and damage == []


@pytest.mark.parametrize("shift", [-40, -1, 0, 1, 40, 41, 1000, 149_000])
def test_damage_at_the_end_of_a_chunk_is_found_as_anywhere(tmp_path, shift):
    """A damaged header whose resynchronization needs the next chunk."""
    with JournalWriter(tmp_path) as writer:
        for _ in range(60):
            write(writer, 1, size=150_000)
        writer.sync()
    path = only_segment(tmp_path)
    places = record_places(path)
    bad = places[30]
    header_end = places[0][0]
    chunk_bytes = bad[0] - header_end + shift
    content = bytearray(path.read_bytes())
    content[bad[0] + 3] ^= 1
    path.write_bytes(content)

    rows, damage = read_all(tmp_path, chunk_bytes=chunk_bytes)

    row = 30 - (len(places) - 60)
    assert numbers(rows) == [r for r in range(60) if r != row]
    assert [(d.offset, d.end, d.first_row) for d in damage if d.kind != HOLE] == [(*bad, row)]


def test_after_a_mebibyte_without_a_record_the_rest_of_the_segment_is_given_up(tmp_path):
    """Row 10 of the fault catalogue: no scan without bound. The next segment is read."""
    with JournalWriter(tmp_path, segment_max_bytes=4 * 1024 * 1024) as writer:
        write(writer, 1)
        for _ in range(40):
            write(writer, 1, size=150_000)
        writer.sync()
        write(writer, 1)
        writer.sync()
    first = segments(tmp_path)[0].path
    places = record_places(first)
    content = bytearray(first.read_bytes())
    content[places[3][0] : places[20][1]] = bytes(places[20][1] - places[3][0])
    first.write_bytes(content)

    rows, damage = read_all(tmp_path)

    assert numbers(rows) == [0, 41]
    assert [d.kind for d in damage] == [REST, HOLE]
    assert (damage[1].first_row, damage[1].next_row) == (1, 41)


def records(count: int, size: int = 3) -> list[bytes]:
    return [encode_record(EVENTS, 0, 2 * i, 2 * i, 2, bytes([i]) * size) for i in range(count)]


@given(count=st.integers(0, 6), cut=st.integers(0, 10**6), is_end=st.booleans())
def test_a_cut_buffer_yields_exactly_the_whole_records_before_the_cut(count, cut, is_end):
    """And a torn tail only where nothing can come behind it."""
    frames = records(count)
    whole = b"".join(frames)
    buf = whole[: cut % (len(whole) + 1)]
    complete = sum(len(b"".join(frames[: i + 1])) <= len(buf) for i in range(count))
    is_torn = len(buf) > len(b"".join(frames[:complete]))

    found = list(scan(memoryview(buf), 0, is_end))

    assert [f.header.row for f in found if isinstance(f, Found)] == list(range(0, 2 * complete, 2))
    assert [d.kind for d in found if isinstance(d, Damage)] == [TAIL] * (is_torn and is_end)


@given(count=st.integers(2, 6), gone=st.integers(0, 4))
def test_a_record_that_is_missing_on_its_boundary_is_a_hole(count, gone):
    """Row 7: checksums are all right there; the rows are not."""
    frames = records(count)
    del frames[gone % (count - 1)]
    row = 2 * (gone % (count - 1))

    found = list(scan(memoryview(b"".join(frames)), 0, is_end=True))

    holes = [d for d in found if isinstance(d, Damage)]
    assert [(d.kind, d.first_row, d.next_row) for d in holes] == [(HOLE, row, row + 2)]


def test_a_record_that_comes_again_is_not_read_again():
    """Its rows were read: nothing is invented."""
    frames = records(3)

    found = list(scan(memoryview(b"".join([*frames[:2], frames[1], frames[2]])), 0, is_end=True))

    assert [f.header.row for f in found if isinstance(f, Found)] == [0, 2, 4]
    assert len([d for d in found if isinstance(d, Damage)]) == 1


def test_a_reader_that_has_read_nothing_can_be_closed(tmp_path):
    """Twice as well; it is not blind before it has looked."""
    with JournalWriter(tmp_path):
        reader = JournalReader(tmp_path)
        assert not reader.is_blind

        reader.close()
        reader.close()


def test_rows_have_the_seqs_of_their_stream_one_by_one(tmp_path):
    """Whatever row a reader begins at."""
    with JournalWriter(tmp_path) as writer:
        writer.append(stream("rank0"), 7, 3, frame(0, 3))
        writer.append(stream("rank1"), 2, 2, frame(3, 2))
        writer.sync()

    for first_row in range(5):
        seqs = [row.seq for row in read_all(tmp_path, first_row)[0]]
        assert seqs == [7, 8, 9, 2, 3][first_row:]


@pytest.mark.parametrize("chunk_bytes", [400, 10**6])
def test_the_last_record_that_was_read_is_known_by_its_place(journal, chunk_bytes):
    """In its segment. Tables of streams are no records of rows."""
    with JournalReader(journal, chunk_bytes=chunk_bytes) as reader:
        assert reader.last_record is None
        while (batch := reader.read()).rows:
            last = reader.last_record
            assert last is not None and last.next_row == reader.next_row == batch.rows[-1].row + 1
            assert is_at(journal, last) and last.segment <= last.row
        assert batch.is_end

    segment = segments(journal)[-2]
    (offset, end), stop = record_places(segment.path)[-1], segments(journal)[-1].first_row
    with JournalReader(journal, segment.first_row, chunk_bytes=chunk_bytes) as reader:
        while reader.read().rows[-1].row + 1 < stop:
            pass
        assert reader.last_record[:2] == (segment.first_row, offset)
    assert not is_at(journal, reader.last_record._replace(offset=end))


def test_a_segment_that_is_cut_inside_a_record_is_told_of_and_the_next_one_is_read(
    journal, tmp_path
):
    """From any row: nobody knows which rows the bytes held."""
    shutil.copytree(journal, tmp_path / "journal")
    middle, behind = segments(tmp_path / "journal")[1:3]
    start, end = record_places(middle.path)[-1]
    os.truncate(middle.path, end - 5)
    lost = behind.first_row - 3

    for first_row in (0, lost, lost + 1):
        rows, damage = read_all(tmp_path / "journal", first_row)

        assert numbers(rows) == [row for row in range(first_row, 60) if not 0 <= row - lost < 3]
        assert [d[:5] for d in damage] == [
            (TAIL, start, end - 5, lost, None),
            (HOLE, 0, 0, lost, behind.first_row),
        ]


def test_a_damaged_header_is_told_to_a_reader_that_begins_with_its_segment(journal, tmp_path):
    """And not to one that begins behind it."""
    shutil.copytree(journal, tmp_path / "journal")
    middle, behind = segments(tmp_path / "journal")[1:3]
    content = bytearray(middle.path.read_bytes())
    content[30] ^= 1
    middle.path.write_bytes(content)

    told = [read_all(tmp_path / "journal", row)[1] for row in (middle.first_row, behind.first_row)]

    assert [[d.kind for d in damage] for damage in told] == [[SEGMENT], []]


def test_a_damaged_record_is_one_damage_wherever_a_chunk_ends(tmp_path):
    """Its rows are lost with it, and no hole besides."""
    with JournalWriter(tmp_path) as writer:
        for _ in range(8):
            write(writer, 2)
            writer.sync()
    path = only_segment(tmp_path)
    start, end = record_places(path)[5]
    content = bytearray(path.read_bytes())
    content[end - 1] ^= 1
    path.write_bytes(content)
    whole = read_all(tmp_path)
    assert [d[1:3] for d in whole[1]] == [(start, end)]

    for chunk_bytes in range(end - start + 40, len(content), 7):
        assert read_all(tmp_path, chunk_bytes=chunk_bytes) == whole


def test_a_torn_tail_is_told_once_where_no_mark_says_that_it_was_never_promised(tmp_path):
    """Nobody writes the journal any more, and its mark is gone."""
    with JournalWriter(tmp_path) as writer:
        write(writer, 2)
        writer.sync()
    (tmp_path / "durable").unlink()
    path = only_segment(tmp_path)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"torn")

    rows, damage = read_all(tmp_path)

    assert numbers(rows) == [0, 1]
    assert [d[:5] for d in damage] == [(TAIL, size, size + 4, 2, None)]


def test_damaged_headers_are_told_with_the_place_where_reading_goes_on(journal, tmp_path):
    """At the first record, or with nothing of the segment."""
    shutil.copytree(journal, tmp_path / "journal")
    middle, later = segments(tmp_path / "journal")[1:3]
    start = record_places(middle.path)[0][0]
    content = bytearray(middle.path.read_bytes())
    content[30] ^= 1
    middle.path.write_bytes(content)
    later.path.write_bytes(bytes(later.path.stat().st_size))

    found = [d[:5] for d in read_all(tmp_path / "journal")[1] if d.kind == SEGMENT]

    assert found == [
        (SEGMENT, 0, start, middle.first_row, middle.first_row),
        (SEGMENT, 0, 0, later.first_row, None),
    ]


def test_a_reader_that_is_closed_twice_closes_no_descriptor_of_another(journal):
    """The number of its own may have been given to somebody else meanwhile."""
    reader = JournalReader(journal)
    assert reader.read().rows
    reader.close()
    theirs = os.open(journal, os.O_RDONLY)

    reader.close()

    os.fstat(theirs)
    os.close(theirs)
