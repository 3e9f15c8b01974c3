"""Writing: what is durable stays, what is not was never promised, and one writer at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.ids import StreamId
from shared.record import PAYLOAD_MAX_BYTES, decode_segment_header
from telemetry.journal.journal_lock import JournalLocked
from telemetry.journal.layout import Mark, read_mark, segments
from telemetry.journal.writer import JournalFault, JournalFull, JournalWriter
from tests.telemetry.journal.helpers import (
    RUN,
    frame,
    is_whole,
    numbers,
    read_all,
    stream,
    write,
)

SEGMENT_MAX = 600
KEY = stream("rank0")


@settings(max_examples=30)
@given(
    acts=st.lists(
        st.sampled_from(["rank0", "rank1", "hardware:h", "sync", "sync", "reopen"]), max_size=40
    )
)
def test_what_was_synced_is_there_in_order_after_any_rotation(tmp_path_factory, acts):
    """Rows are contiguous and in the order of append, each stream's seqs without a hole."""
    directory = tmp_path_factory.mktemp("run") / "journal"
    writer = JournalWriter(directory, SEGMENT_MAX)
    synced: list[tuple[str, int]] = []
    appended: list[tuple[str, int]] = []
    for act in acts:
        if act == "sync":
            writer.sync()
            synced += appended
            appended = []
        elif act == "reopen":
            writer.close()
            appended = []
            writer = JournalWriter(directory, SEGMENT_MAX)
        else:
            first = writer.appended_seq(stream(act)) + 1
            write(writer, 2, act)
            appended += [(act, first), (act, first + 1)]
    writer.close()

    rows, damage = read_all(directory)

    assert damage == []
    assert numbers(rows) == list(range(len(synced)))
    assert [(row.source, row.seq) for row in rows] == synced
    assert is_whole(directory)


def test_the_first_row_of_an_append_is_its_answer(tmp_path):
    """And nothing is durable before sync."""
    with JournalWriter(tmp_path) as writer:
        assert [write(writer, 3), write(writer, 2, "rank1")] == [0, 3]
        assert (writer.next_row, writer.durable_row) == (5, 0)
        assert (writer.appended_seq(KEY), writer.durable_seq(KEY)) == (2, -1)
        assert writer.pending_bytes > 0

        writer.sync()

        assert (writer.durable_row, writer.durable_seq(KEY), writer.pending_bytes) == (5, 2, 0)
        assert writer.durable_seq(StreamId(RUN, "unknown", "rank0")) == -1


@pytest.mark.parametrize("segment_max", [SEGMENT_MAX, 10**9], ids=["rotated", "one segment"])
def test_the_streams_durable_seqs_survive_reopening(tmp_path, segment_max):
    """A restarted sidecar knows where every stream goes on, from headers alone."""
    with JournalWriter(tmp_path, segment_max) as writer:
        for i in range(30):
            write(writer, 1 + i % 3, f"rank{i % 2}")
            writer.sync()
        write(writer, 5)  # not synced: forgotten
        before = {s: writer.durable_seq(stream(s)) for s in ("rank0", "rank1")}
        next_row = writer.durable_row

    with JournalWriter(tmp_path, segment_max) as writer:
        after = {s: writer.durable_seq(stream(s)) for s in ("rank0", "rank1")}

        assert after == before == {s: writer.appended_seq(stream(s)) for s in after}
        assert writer.next_row == writer.durable_row == next_row
    assert (len(segments(tmp_path)) > 1) == (segment_max == SEGMENT_MAX)


def test_a_second_writer_of_one_journal_is_refused(tmp_path):
    """In this process and in another; and the first goes on."""
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from telemetry.journal.journal_lock import JournalLocked
        from telemetry.journal.writer import JournalWriter
        try:
            JournalWriter(Path({str(tmp_path)!r}))
        except JournalLocked:
            print("locked")
        """
    )
    with JournalWriter(tmp_path) as writer:
        with pytest.raises(JournalLocked, match=str(tmp_path)):
            JournalWriter(tmp_path)
        other = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
        )
        assert other.stdout == "locked\n"
        write(writer, 1)
        writer.sync()

    with JournalWriter(tmp_path) as writer:
        assert writer.next_row == 1


@pytest.mark.parametrize(("count", "size"), [(65_535, 1), (1, PAYLOAD_MAX_BYTES)])
def test_a_frame_as_large_as_a_record_may_be_is_taken(tmp_path, count, size):
    """The bounds are those of the format, to the last event and byte."""
    with JournalWriter(tmp_path) as writer:
        writer.append(KEY, 0, count, bytes(size))
        writer.sync()

        assert writer.durable_row == count and writer.durable_seq(KEY) == count - 1
    with JournalWriter(tmp_path) as writer:
        assert writer.next_row == count and writer.recovered.damage == []


@pytest.mark.parametrize("count", [0, 1 << 16])
def test_a_frame_that_no_record_can_hold_is_refused(tmp_path, count):
    """By the caller's mistake; the journal is as it was."""
    with JournalWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="frame of"):
            writer.append(KEY, 0, count, b"\x90")
        with pytest.raises(ValueError, match="frame of"):
            writer.append(KEY, 0, 1, bytes(2 * 1024 * 1024 + 1))
        assert (writer.next_row, writer.pending_bytes) == (0, 0)


class Disk:
    """Fails the next calls of os.pwrite, os.fdatasync or os.open as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pwrite, self._fdatasync, self._open = os.pwrite, os.fdatasync, os.open
        self.write_error: int | None = None
        self.sync_error: int | None = None
        self.segment_error: int | None = None
        self.bytes_before_error = 0
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)
        monkeypatch.setattr(os, "open", self.open)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """A short write first, then the error: as a disk that fills up does."""
        if self.write_error is None:
            return self._pwrite(fd, data, offset)
        if self.bytes_before_error:
            part, self.bytes_before_error = self.bytes_before_error, 0
            return self._pwrite(fd, bytes(data)[:part], offset)
        raise OSError(self.write_error, os.strerror(self.write_error))

    def fdatasync(self, fd: int) -> None:
        if self.sync_error is not None:
            raise OSError(self.sync_error, os.strerror(self.sync_error))
        self._fdatasync(fd)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if self.segment_error is not None and str(path).endswith((".seg", ".making")):
            raise OSError(self.segment_error, os.strerror(self.segment_error))
        return self._open(path, flags, mode)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("short", [0, 1, 45, 120])
def test_a_full_disk_tears_nothing_and_a_later_sync_succeeds(tmp_path, disk, code, short):
    """Row 11 of the fault catalogue: nothing pending is lost, nothing is promised."""
    with JournalWriter(tmp_path) as writer:
        write(writer, 2)
        writer.sync()
        size = segments(tmp_path)[0].path.stat().st_size
        write(writer, 3)
        disk.write_error, disk.bytes_before_error = code, short

        with pytest.raises(JournalFull):
            writer.sync()

        assert (writer.durable_row, writer.durable_seq(KEY)) == (2, 1)
        assert segments(tmp_path)[0].path.stat().st_size == size
        assert numbers(read_all(tmp_path)[0]) == [0, 1]
        disk.write_error = None
        write(writer, 1)
        writer.sync()
        assert (writer.durable_row, writer.durable_seq(KEY)) == (6, 5)
    assert numbers(read_all(tmp_path)[0]) == list(range(6))
    assert read_all(tmp_path)[1] == []


@pytest.mark.parametrize("where", ["write", "sync"])
def test_after_an_io_error_nothing_is_ever_acknowledged_again(tmp_path, disk, where):
    """Row 12: a second fdatasync would succeed and mean nothing."""
    with JournalWriter(tmp_path) as writer:
        write(writer, 2)
        writer.sync()
        write(writer, 3)
        if where == "write":
            disk.write_error = errno.EIO
        else:
            disk.sync_error = errno.EIO
        with pytest.raises(JournalFault):
            writer.sync()
        disk.write_error = disk.sync_error = None

        for _ in range(2):
            with pytest.raises(JournalFault):
                writer.sync()
            write(writer, 1)

        assert (writer.durable_row, writer.durable_seq(KEY)) == (2, 1)
        assert read_mark(tmp_path).next_row == 2

    # Verified at restart: what reached the disk after all counts, and nothing else.
    with JournalWriter(tmp_path) as writer:
        assert writer.durable_row in (2, 5)
        assert writer.durable_seq(KEY) == writer.durable_row - 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE])
def test_without_room_for_a_new_segment_the_old_one_goes_on(tmp_path, disk, code):
    """Nothing is refused for the sake of a rotation, and no empty segment is left to mislead."""
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        disk.segment_error = code
        for _ in range(20):
            write(writer, 2)
            writer.sync()
        assert len(segments(tmp_path)) == 1
        assert writer.durable_row == 40
        disk.segment_error = None
        for _ in range(20):
            write(writer, 2)
            writer.sync()

    assert len(segments(tmp_path)) > 1
    rows, damage = read_all(tmp_path)
    assert numbers(rows) == list(range(80)) and damage == []
    for first_row in (3, 39, 40, 41, 79):
        assert numbers(read_all(tmp_path, first_row)[0]) == list(range(first_row, 80))


def test_a_segment_that_was_begun_on_a_full_disk_is_taken_away(tmp_path, disk, monkeypatch):
    """Its file would carry the number of a row that is elsewhere."""
    fdatasync = disk.fdatasync

    def full_for_other_segments(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name != f"{0:020d}.seg":
            raise OSError(errno.ENOSPC, "full")
        fdatasync(fd)

    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        monkeypatch.setattr(os, "fdatasync", full_for_other_segments)

        for _ in range(10):
            write(writer, 9)
            writer.sync()

        assert writer.durable_row == 90 and len(segments(tmp_path)) == 1
    assert is_whole(tmp_path)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        assert writer.durable_row == 90
    assert numbers(read_all(tmp_path)[0]) == list(range(90))


def test_a_segment_that_could_not_be_begun_nor_taken_away_stops_the_writer(
    tmp_path, disk, monkeypatch
):
    """Recovery would take it for the last one, and what is written to the old one for lost."""
    fdatasync, unlink = disk.fdatasync, Path.unlink

    def full_for_other_segments(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().suffix == ".making":
            raise OSError(errno.ENOSPC, "full")
        fdatasync(fd)

    def left(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        monkeypatch.setattr(os, "fdatasync", full_for_other_segments)
        monkeypatch.setattr(Path, "unlink", left)
        write(writer, 50)
        with pytest.raises(JournalFault):
            writer.sync()
        durable = writer.durable_row
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        monkeypatch.setattr(Path, "unlink", unlink)

        write(writer, 1)
        with pytest.raises(JournalFault, match="closed after a failed"):
            writer.sync()

        assert writer.durable_row == durable == 50


def test_an_io_error_in_a_rotation_keeps_what_was_durable_and_stops(tmp_path, disk):
    """The sync itself had succeeded: its events may be acknowledged, later ones not."""
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        disk.segment_error = errno.EIO
        write(writer, 50)

        with pytest.raises(JournalFault):
            writer.sync()

        assert writer.durable_row == 50
        write(writer, 1)
        with pytest.raises(JournalFault):
            writer.sync()
        assert writer.durable_row == 50


def test_a_mark_that_finds_no_room_is_published_by_a_later_sync(tmp_path, disk):
    """Readers wait a little; nothing else does."""
    with JournalWriter(tmp_path) as writer:
        write(writer, 2)
        mark_fd, pwrite = writer._mark_fd, disk.pwrite

        def no_room_for_the_mark(fd: int, data: bytes, offset: int) -> int:
            if fd == mark_fd:
                raise OSError(errno.ENOSPC, "full")
            return pwrite(fd, data, offset)

        os.pwrite = no_room_for_the_mark
        writer.sync()
        assert (writer.durable_row, read_mark(tmp_path).next_row) == (2, 0)
        os.pwrite = pwrite

        writer.sync()

        assert read_mark(tmp_path).next_row == 2


def test_close_may_be_called_twice_and_lets_go_of_the_lock(tmp_path):
    """What was not synced is forgotten, as after a crash."""
    writer = JournalWriter(tmp_path)
    write(writer, 1)
    writer.close()
    writer.close()

    with JournalWriter(tmp_path) as again:
        assert again.next_row == 0


def test_the_mark_says_where_the_durable_bytes_end(tmp_path):
    """In the segment that is being written."""
    with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
        for _ in range(15):
            write(writer, 2)
            writer.sync()
            segment = segments(tmp_path)[-1]
            size = segment.path.stat().st_size
            assert read_mark(tmp_path) == Mark(segment.first_row, size, writer.durable_row)


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    """Row 13: OSError with the path."""
    blocker = tmp_path / "file"
    blocker.write_text("")

    with pytest.raises(OSError, match="file"):
        JournalWriter(Path(blocker) / "journal")


def test_the_payload_is_kept_byte_for_byte(tmp_path):
    """The journal keeps what was said, not what it understood of it."""
    payload = frame(0, 3)
    with JournalWriter(tmp_path) as writer:
        writer.append(KEY, 7, 3, payload)
        writer.sync()

    assert payload in segments(tmp_path)[0].path.read_bytes()
    assert [row.seq for row in read_all(tmp_path)[0]] == [7, 8, 9]


def test_what_comes_from_the_spool_of_a_session_that_is_over_is_marked_as_late(tmp_path):
    """A late RunStarted must not begin the run anew."""
    with JournalWriter(tmp_path) as writer:
        writer.append(KEY, 0, 1, frame(0, 1))
        writer.append(stream("rank1"), 0, 1, frame(1, 1), is_late=True)
        writer.sync()

    assert [row.is_late for row in read_all(tmp_path)[0]] == [False, True]


def test_every_segment_names_one_journal_also_after_a_restart(tmp_path):
    """A cursor of another uuid would be refused."""
    for _ in range(3):
        with JournalWriter(tmp_path, SEGMENT_MAX) as writer:
            for _ in range(10):
                write(writer, 2)
                writer.sync()

    headers = [
        decode_segment_header(memoryview(segment.path.read_bytes()))
        for segment in segments(tmp_path)
    ]

    assert len(headers) > 3 and len({header.journal_uuid for header in headers}) == 1
