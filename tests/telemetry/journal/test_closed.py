"""Streams that have ended leave the headers of segments, and go on at their number."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.events import MetricsLogged
from shared.record import decode_segment_header
from telemetry.journal.closed import CLOSED_NAME, Closed, append_closed, read_closed
from telemetry.journal.identity import identify
from telemetry.journal.layout import segments
from telemetry.journal.writer import JournalFault, JournalWriter
from tests.telemetry.journal.helpers import (
    is_whole,
    open_descriptors,
    read_all,
    stream,
    write,
)

SEGMENT_MAX = 600


def header_bytes(directory: Path) -> list[int]:
    sizes = []
    for segment in segments(directory):
        header = decode_segment_header(memoryview(segment.path.read_bytes()))
        assert header is not None
        sizes.append(header.size)
    return sizes


def worker(number: int) -> str:
    return f"rank0.worker{number}"


def of_workers(directory: Path, count: int) -> None:
    """Workers that each say one frame and end."""
    with JournalWriter(directory, SEGMENT_MAX) as writer:
        for number in range(count):
            write(writer, 2, worker(number))
            writer.sync()
            writer.end_stream(stream(worker(number)))


def test_thousands_of_short_workers_do_not_grow_the_headers(tmp_path):
    """The last header names no more of them than the first ones."""
    of_workers(tmp_path, 600)

    sizes = header_bytes(tmp_path)

    assert len(sizes) > 100 and max(sizes) < 500


def test_a_closed_stream_that_speaks_again_goes_on_at_its_number(tmp_path):
    """In the same process, in the next one, and read from any row. Exactly once."""
    of_workers(tmp_path, 20)
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        assert writer.appended_seq(stream(worker(0))) == 1
        for _ in range(3):
            write(writer, 1, worker(0))
            writer.sync()
            writer.end_stream(stream(worker(0)))
            write(writer, 4, "rank1")
            writer.sync()
        last = writer.appended_seq(stream(worker(0)))
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        assert writer.durable_seq(stream(worker(0))) == last == 4

    rows, damage = read_all(tmp_path)

    assert damage == [] and is_whole(tmp_path)
    assert [r.seq for r in rows if r.source == worker(0)] == [0, 1, 2, 3, 4]
    for first_row in range(rows[-1].row):
        assert read_all(tmp_path, first_row)[0] == rows[first_row:]


def test_a_stream_that_begins_behind_closed_ones_gets_a_number_of_its_own(tmp_path):
    """They have the highest numbers, and no segment that is read at a restart names them."""
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        write(writer, 1, "rank1")
        for number in range(4):
            write(writer, 2, worker(number))
            writer.sync()
            writer.end_stream(stream(worker(number)))
        for _ in range(20):
            write(writer, 2, "rank1")
            writer.sync()

    for source in ("rank7", worker(3)):
        with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
            write(writer, 3, source)
            writer.sync()

    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        told = {s: writer.durable_seq(stream(s)) for s in map(worker, range(4))}
        assert writer.durable_seq(stream("rank7")) == 2
        numbers = {**writer.recovered.closed, **writer.recovered.streams}
    assert told == {worker(0): 1, worker(1): 1, worker(2): 1, worker(3): 4}
    assert sorted(numbers) == [0, 1, 2, 3, 4, 5]
    rows = read_all(tmp_path)[0]
    assert [row.source for row in rows][-6:] == [*["rank7"] * 3, *[worker(3)] * 3]


@pytest.mark.parametrize("where", ["its header is damaged", "it is gone, and the next names it"])
def test_a_damaged_list_is_made_good_from_what_is_left_of_the_segments(tmp_path, where):
    """Also where the segment in which a stream began is not whole itself."""
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        write(writer, 2, worker(0))
        if where == "its header is damaged":
            writer.end_stream(stream(worker(0)))  # so that no other header names it
        while len(segments(tmp_path)) == 1:
            write(writer, 2, "rank1")
            writer.sync()
        writer.end_stream(stream(worker(0)))
        for _ in range(20):
            write(writer, 2, "rank1")
            writer.sync()
    path = tmp_path / CLOSED_NAME
    path.write_bytes(path.read_bytes()[:-1])
    first = segments(tmp_path)[0].path
    if where == "its header is damaged":
        content = bytearray(first.read_bytes())
        content[30] ^= 1
        first.write_bytes(content)
    else:
        first.unlink()

    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        assert writer.durable_seq(stream(worker(0))) == 1


def test_streams_that_were_closed_once_are_not_closed_again_at_each_rotation(tmp_path):
    """The list would grow with every segment."""
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        for number in range(5):
            write(writer, 1, worker(number))
            writer.sync()
            writer.end_stream(stream(worker(number)))
        for _ in range(10):
            write(writer, 3, "rank1")
            writer.sync()
        size, count = read_closed(tmp_path).size, len(segments(tmp_path))
        for _ in range(30):
            write(writer, 3, "rank1")
            writer.sync()

    assert len(segments(tmp_path)) > count + 3 and read_closed(tmp_path).size == size > 0


acts = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "end", "sync", "sync", "reopen"]), st.integers(0, 3)
    ),
    max_size=50,
)


@settings(max_examples=60)
@given(acts=acts)
def test_whatever_ends_and_goes_on_each_stream_has_its_numbers_once(tmp_path_factory, acts):
    """However writes, ends, syncs and restarts follow one another."""
    directory = tmp_path_factory.mktemp("run") / "journal"
    writer = JournalWriter(directory, SEGMENT_MAX)
    for act, which in acts:
        if act == "write":
            write(writer, 2, worker(which))
        elif act == "end":
            writer.end_stream(stream(worker(which)))
        elif act == "sync":
            writer.sync()
        else:
            before = {n: writer.durable_seq(stream(worker(n))) for n in range(4)}
            writer.close()
            writer = JournalWriter(directory, SEGMENT_MAX)
            after = {n: writer.durable_seq(stream(worker(n))) for n in range(4)}
            assert after == before
            assert {e.source: e.durable_seq for e in identify(directory)[1].values()} == {
                worker(n): seq for n, seq in after.items() if seq >= 0
            }
    writer.close()

    rows, damage = read_all(directory)

    assert damage == []
    for which in range(4):
        seqs = [row.seq for row in rows if row.source == worker(which)]
        assert seqs == list(range(len(seqs)))


@pytest.mark.parametrize("damage", ["a bit", "cut", "gone", "bytes of the middle are gone"])
def test_a_damaged_list_of_closed_streams_is_made_good_from_the_segments(tmp_path, damage):
    """Otherwise a late event would be journaled a second time."""
    of_workers(tmp_path, 30)
    path = tmp_path / CLOSED_NAME
    data = bytearray(path.read_bytes())
    if damage == "a bit":
        data[len(data) // 3] ^= 4
    elif damage == "cut":
        # Of entries whose segment was begun: only an unfinished one is cut by a crash.
        data[len(data) // 2 :] = b""
        data += b"\\x00"
    else:
        del data[len(data) // 3 : len(data) // 3 + 20]
    path.write_bytes(data)

    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        told = [writer.durable_seq(stream(worker(n))) for n in range(30)]
        row = write(writer, 1, "rank7")
        writer.sync()

    assert told == [1] * 30 and row == 60
    assert [r.source for r in read_all(tmp_path)[0]][-1] == "rank7"


def test_what_a_worker_said_after_it_was_closed_counts_though_the_list_forgot_it(tmp_path):
    """The list names it twice, and the newer entry is damaged: the older one is out of date."""
    of_workers(tmp_path, 20)
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        size = read_closed(tmp_path).size
        write(writer, 3, worker(0))
        writer.sync()
        writer.end_stream(stream(worker(0)))
        for _ in range(10):
            write(writer, 2, "rank1")
            writer.sync()
    path = tmp_path / CLOSED_NAME
    data = bytearray(path.read_bytes())
    assert len(data) > size
    data[-1] ^= 1
    path.write_bytes(data)

    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        assert writer.durable_seq(stream(worker(0))) == 4


@pytest.mark.parametrize("which", [0, 7])
def test_one_stream_that_is_missing_from_the_list_is_found_in_the_segments(tmp_path, which):
    """An older list was put back: it is whole, and does not name them all."""
    of_workers(tmp_path, 20)
    streams = read_closed(tmp_path).streams
    assert which in streams
    (tmp_path / CLOSED_NAME).unlink()
    append_closed(tmp_path, 0, {n: entry for n, entry in streams.items() if n != which})

    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        assert [writer.durable_seq(stream(worker(n))) for n in range(20)] == [1] * 20


def unopened(number: int) -> Callable[..., int]:
    """Return an os.open that fails with this error for the list of closed streams."""
    real = os.open

    def failing(path: os.PathLike[str] | str, *rest: int, **named: int) -> int:
        if os.fspath(path).endswith(CLOSED_NAME):
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **named)

    return failing


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_without_room_to_close_streams_the_headers_go_on_naming_them(tmp_path, monkeypatch, number):
    """Nothing is lost; the next segment tries again."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", unopened(number))
        of_workers(tmp_path, 20)
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        told = [writer.durable_seq(stream(worker(n))) for n in range(20)]

    assert told == [1] * 20 and read_closed(tmp_path).streams == {}


def test_a_disk_that_fails_while_streams_are_closed_is_a_fault(tmp_path, monkeypatch):
    """Nothing is acknowledged from it any more."""
    monkeypatch.setattr(os, "open", unopened(errno.EIO))

    with pytest.raises(JournalFault):
        of_workers(tmp_path, 20)


def test_a_torn_tail_of_the_list_is_written_over(tmp_path):
    """A crash came while it grew; what it was to name is in the header still."""
    of_workers(tmp_path, 20)
    whole = read_closed(tmp_path)
    with (tmp_path / CLOSED_NAME).open("ab") as file:
        file.write(b"\x1e\x7e\x02half a record" * 100)

    torn = read_closed(tmp_path)
    append_closed(tmp_path, torn.size, {99: next(iter(whole.streams.values()))})

    assert torn.streams == whole.streams and torn.size == whole.size and torn.is_damaged
    mended = read_closed(tmp_path)
    assert set(mended.streams) == {*whole.streams, 99} and not mended.is_damaged


def test_a_list_begins_at_the_first_byte(tmp_path):
    """Otherwise it reads as damaged, and every opening reads all segments."""
    of_workers(tmp_path, 20)

    closed = read_closed(tmp_path)

    assert not closed.is_damaged and closed.size == (tmp_path / CLOSED_NAME).stat().st_size


def test_a_list_that_cannot_be_read_counts_as_damaged_from_its_first_byte(tmp_path):
    """What is appended to it then stands at the start, in place of what can't be read."""
    (tmp_path / CLOSED_NAME).mkdir()

    assert read_closed(tmp_path) == Closed({}, 0, True)


def test_a_list_that_could_not_be_written_whole_is_as_it_was(tmp_path, monkeypatch):
    """Its descriptor is closed as well: the journal's next attempt may be its last one."""
    of_workers(tmp_path, 20)
    whole = (tmp_path / CLOSED_NAME).read_bytes()
    streams = read_closed(tmp_path).streams
    opened = open_descriptors()

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="Input/output"):
        append_closed(tmp_path, len(whole), streams)

    assert (tmp_path / CLOSED_NAME).read_bytes() == whole
    assert open_descriptors() == opened


def test_metrics_of_a_closed_worker_read_back(tmp_path):
    """A reader needs nothing but the segments."""
    of_workers(tmp_path, 10)
    (tmp_path / CLOSED_NAME).unlink()

    rows, damage = read_all(tmp_path)

    assert damage == [] and len(rows) == 20
    assert all(isinstance(row.envelope.event(), MetricsLogged) for row in rows)
