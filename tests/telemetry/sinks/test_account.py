"""What is held against a row, by whom, and what is not."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from pathlib import Path

import pytest

from telemetry.run_dir import RunDir
from telemetry.sinks.account import Account
from telemetry.sinks.base import SinkUnavailable
from telemetry.sinks.skips import read_skips
from telemetry.sinks.slot import AT_ROW, Slot
from tests.telemetry.sinks.helpers_rows import RowMaker


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "cursors"
    directory.mkdir()
    return directory


def account(directory: Path) -> Account:
    place = RunDir(directory.parent)
    return Account(place, place, "lines", "r")


def test_a_row_is_stepped_over_when_it_has_cost_two_processes(directory, caplog):
    """By the third, before it begins; said once."""
    for _ in range(2):
        with closing(account(directory)) as held:
            assert 9 not in held.skips
            held.slot.enter(AT_ROW, 9)
            held.note_crash(ValueError("bad"))

    for _ in range(2):
        with closing(account(directory)) as held:
            assert 9 in held.skips and held.slot.suspect is None

    assert caplog.text.count("steps over row 9: crashed 2 times: ValueError: bad") == 1


def test_what_a_killed_process_announced_is_not_held_against_its_successor(directory):
    """It was at row 9 when it was killed; the next one crashes while it opens."""
    for _ in range(3):
        with closing(account(directory)) as killed:
            killed.slot.enter(AT_ROW, 9)
        with closing(account(directory)) as next_one:
            next_one.note_crash(ValueError("while opening"))

    with closing(account(directory)) as held:
        assert len(held.skips) == 0 and held.slot.suspect is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        *(OSError(n, "x") for n in (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EDQUOT)),
    ],
    ids=repr,
)
def test_what_the_machine_lacks_is_no_rows_fault(directory, error):
    """Any other row would have met it."""
    for _ in range(3):
        with closing(account(directory)) as held:
            held.slot.enter(AT_ROW, 9)
            held.note_crash(error)

    with closing(account(directory)) as held:
        assert len(held.skips) == 0


def test_a_name_that_no_file_can_have_is_the_rows_fault(directory):
    """An OSError all the same."""
    with closing(account(directory)) as held:
        held.slot.enter(AT_ROW, 9)
        held.note_crash(OSError(errno.ENAMETOOLONG, "File name too long"))

        assert held.slot.suspect is not None


def test_a_crash_is_told_in_one_line_of_bounded_length(directory, caplog):
    """Whatever a library puts into its message, and however deep it is."""

    def deep(levels: int) -> None:
        if levels == 0:
            raise ValueError("x" * 300_000 + "\n\x1b[2J")
        deep(levels - 1)

    with closing(account(directory)) as held:
        try:
            deep(500)
        except ValueError as exc:
            held.note_crash(exc)

    (record,) = caplog.records
    assert len(record.getMessage()) < 1000 and record.getMessage().isprintable()
    assert "test_account.py" in record.getMessage()


def full(fd: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_skip_that_can_not_be_kept_is_not_acted_upon(directory, monkeypatch):
    """The disk is full: the sink waits, and does not go on behind the row."""
    with closing(account(directory)) as held:
        monkeypatch.setattr(os, "fsync", full)

        with pytest.raises(SinkUnavailable, match="can't be written"):
            held.skip(3, "x")
        assert 3 not in held.skips


def test_a_slot_that_can_not_be_had_makes_the_sink_wait(directory):
    """Not crash."""
    RunDir(directory.parent).slot("lines").mkdir()

    with pytest.raises(SinkUnavailable):
        account(directory)


def test_the_supervisor_and_the_sink_count_in_one_place(directory):
    """An exception that the process saw and a signal that only its parent saw."""
    with closing(account(directory)) as held:
        held.slot.enter(AT_ROW, 9)
        held.note_crash(ValueError("x"))
    with closing(account(directory)) as held:
        held.slot.enter(AT_ROW, 9)
    with closing(Slot(RunDir(directory.parent).slot("lines"))) as seen_by_parent:
        seen_by_parent.note_death("ended by SIGSEGV")

    with closing(account(directory)) as held:
        assert 9 in held.skips


def test_a_row_is_put_on_record_once(directory, caplog):
    """However often the sink refuses it."""
    with closing(account(directory)) as held:
        held.skip(3, "first")
        held.skip(3, "second")

    assert [skip.reason for skip in read_skips(directory / "lines.skipped")] == ["first"]
    assert caplog.text.count("steps over row 3") == 1


def test_a_replay_skips_what_the_run_has_skipped_and_adds_its_own(tmp_path, directory):
    """To the files of the replay; those of the run stay as they are."""
    with closing(account(directory)) as held:
        held.skip(3, "first")
    (tmp_path / "replay" / "cursors").mkdir(parents=True)
    replay = Account(RunDir(tmp_path / "replay"), RunDir(directory.parent), "lines", "r")

    with closing(replay) as held:
        held.skip(5, "second")
        assert 3 in held.skips and 5 in held.skips

    assert [skip.row for skip in read_skips(directory / "lines.skipped")] == [3]


def test_rows_that_are_not_skipped_are_kept(directory):
    """In their order, and all of them where none is skipped."""
    rows = RowMaker()
    for step in range(4):
        rows.metrics(step, {"a": 1.0})
    with closing(account(directory)) as held:
        assert list(held.kept(rows.rows)) == rows.rows
        held.skip(rows.rows[1].row, "x")

        assert list(held.kept(rows.rows)) == [rows.rows[0], *rows.rows[2:]]


def test_an_account_that_is_closed_holds_no_page(directory):
    """A sidecar opens one for each sink of each run."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        held = account(directory)
        held.close()
        held.close()
        assert held.slot._page.closed

    assert len(list(Path("/proc/self/fd").iterdir())) == before
