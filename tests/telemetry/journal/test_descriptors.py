"""Descriptors: what fails to open, however often, leaves none open in a sidecar of many days."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.files import sync_directory
from telemetry.journal.journal_lock import JournalLocked
from telemetry.journal.layout import read_mark, segments
from telemetry.journal.readable import is_written, readable_end
from telemetry.journal.scan import SEGMENT
from telemetry.journal.writer import JournalWriter
from tests.telemetry.journal.helpers import only_segment, open_descriptors, read_all, write

TIMES = 50


def left_open(act: Callable[[], object]) -> int:
    """Act often, and return how many descriptors that has cost."""
    before = open_descriptors()
    for _ in range(TIMES):
        act()
    return open_descriptors() - before


def test_a_journal_that_somebody_else_writes_costs_no_descriptor(tmp_path, monkeypatch):
    """An emitter that comes again and again asks each time."""
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def refused() -> None:
        with pytest.raises(JournalLocked):
            JournalWriter(tmp_path)

    with JournalWriter(tmp_path):
        assert left_open(refused) == 0


def test_a_journal_that_cannot_be_recovered_costs_no_descriptor_and_no_lock(tmp_path):
    """The sidecar tries again for as long as a producer asks."""
    (tmp_path / f"{0:020d}.seg").mkdir()

    def refused() -> None:
        with pytest.raises(IsADirectoryError):
            JournalWriter(tmp_path)

    assert left_open(refused) == 0


def test_a_segment_that_finds_no_room_costs_no_descriptor(tmp_path, monkeypatch):
    """It is tried at every sync for as long as the disk is full."""
    fdatasync = os.fdatasync

    def full_for_other_segments(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().suffix == ".making":
            raise OSError(errno.ENOSPC, "full")
        fdatasync(fd)

    with JournalWriter(tmp_path, 100) as writer:
        monkeypatch.setattr(os, "fdatasync", full_for_other_segments)

        def act() -> None:
            write(writer, 2)
            writer.sync()

        assert left_open(act) == 0 and len(segments(tmp_path)) == 1


@pytest.mark.parametrize("fails", [False, True], ids=["synced", "refused"])
def test_a_directory_that_is_synced_costs_no_descriptor(tmp_path, monkeypatch, fails):
    """Whether the disk takes it or not."""

    def sync(_: int) -> None:
        if fails:
            raise OSError

    monkeypatch.setattr(os, "fsync", sync)

    def act() -> None:
        if fails:
            with pytest.raises(OSError):
                sync_directory(tmp_path)
        else:
            sync_directory(tmp_path)

    assert left_open(act) == 0


def test_a_segment_without_a_header_or_a_record_costs_no_descriptor(tmp_path):
    """Each sink reads it again at each start."""
    with JournalWriter(tmp_path) as writer:
        write(writer, 2)
        writer.sync()
    path = only_segment(tmp_path)
    path.write_bytes(os.urandom(len(path.read_bytes())))

    def act() -> None:
        rows, damage = read_all(tmp_path)
        assert rows == [] and damage[0].kind == SEGMENT

    assert left_open(act) == 0


def test_a_journal_with_segments_of_which_some_are_damaged_costs_no_descriptor(tmp_path):
    """Opened, read and closed, by a writer and by readers that ask how far it goes."""
    directory = tmp_path / "journal"
    with JournalWriter(directory, 600) as writer:
        for _ in range(20):
            write(writer, 2)
            writer.sync()
    middle, last = segments(directory)[1], segments(directory)[-1]
    content = bytearray(middle.path.read_bytes())
    content[30] ^= 1
    middle.path.write_bytes(content)

    def act() -> None:
        with last.path.open("ab") as file:
            file.write(b"torn")
        assert len(read_all(directory, middle.first_row + 1)[0]) == 39 - middle.first_row
        assert readable_end(directory) == read_mark(directory) and not is_written(directory)
        with JournalWriter(directory, 600) as writer:
            assert writer.next_row == 40

    assert left_open(act) == 0
