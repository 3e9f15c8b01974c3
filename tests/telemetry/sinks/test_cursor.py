"""Cursors: how far a sink has got, whatever happened in between."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from telemetry.sinks.base import START, Position
from telemetry.sinks.cursor import Cursor, CursorLocked, OtherJournal


def test_a_new_cursor_stands_at_the_start(tmp_path):
    """Nothing was accepted yet."""
    with Cursor(tmp_path, "lines", "r") as cursor:
        assert (cursor.position, cursor.is_done) == (START, False)


def test_a_committed_position_is_there_after_a_restart(tmp_path):
    """With all that the sink needs to go on."""
    position = Position(7, {"bytes": 100, "files": ["a"]})
    with Cursor(tmp_path, "lines", "r") as cursor:
        cursor.commit(position, is_done=True, ending=2)

    with Cursor(tmp_path, "lines", "r") as cursor:
        assert (cursor.position, cursor.is_done) == (position, True)
    assert json.loads(cursor.path.read_text())["ending"] == 2


def test_a_cursor_that_was_done_is_not_when_it_moves_on(tmp_path):
    """The run was reopened."""
    with Cursor(tmp_path, "lines", "r") as cursor:
        cursor.commit(Position(7, {}), is_done=True, ending=1)
        cursor.commit(Position(8, {}))

        assert json.loads(cursor.path.read_text())["done"] is False


def test_nothing_is_written_where_nothing_changed(tmp_path):
    """An idle sink does not wear the disk once a second."""
    with Cursor(tmp_path, "lines", "r") as cursor:
        cursor.commit(Position(7, {"a": 1}))
        before = cursor.path.stat()
        cursor.commit(Position(7, {"a": 1}))

        assert cursor.path.stat().st_ino == before.st_ino


def test_the_same_position_at_a_later_end_of_the_run_is_written(tmp_path):
    """Or the supervisor would start the sink again and again."""
    with Cursor(tmp_path, "lines", "r") as cursor:
        cursor.commit(Position(7, {}), is_done=True, ending=1)
        cursor.commit(Position(7, {}), is_done=True, ending=2)

        assert json.loads(cursor.path.read_text())["ending"] == 2


def test_a_cursor_has_one_holder_at_a_time(tmp_path):
    """Two processes of one sink would double every point."""
    with Cursor(tmp_path, "lines", "r"):
        with pytest.raises(CursorLocked):
            Cursor(tmp_path, "lines", "r")
        Cursor(tmp_path, "other", "r").close()

    Cursor(tmp_path, "lines", "r").close()


@pytest.mark.parametrize(
    "content",
    ['{"run_id": "q", "row": 1, "state": {}}', '{"run_id": "r"}', '{"run_id": "r", "row": "x"}',
     '{"run_id": "r", "row": 1, "state": 5}'],
)  # fmt: skip
def test_a_cursor_that_is_not_this_runs_or_damaged_is_refused(tmp_path, content):
    """To begin again from row 0 would double what is in the sink. The lock is let go."""
    (tmp_path / "cursors").mkdir()
    path = tmp_path / "cursors" / "lines.json"
    path.write_text(content)

    for _ in range(2):
        with pytest.raises(ValueError, match=r"lines\.json"):
            Cursor(tmp_path, "lines", "r")


def test_a_commit_that_fails_leaves_the_old_position_and_nothing_else(tmp_path, monkeypatch):
    """The disk is full: the cursor is as it was, in memory too."""
    with Cursor(tmp_path, "lines", "r") as cursor:
        cursor.commit(Position(7, {}))

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            cursor.commit(Position(8, {}))

        assert cursor.position.row == 7
        assert json.loads(cursor.path.read_text())["row"] == 7
        assert sorted(p.name for p in cursor.path.parent.iterdir()) == ["lines.json", "lines.lock"]


def test_a_cursor_is_on_disk_whole_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    """After a power cut the name stands for all of it."""
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def recording(fd: int) -> None:
        synced.append((Path(f"/proc/self/fd/{fd}").readlink().name, os.fstat(fd).st_size))
        fsync(fd)

    with Cursor(tmp_path, "lines", "r") as cursor:
        monkeypatch.setattr(os, "fsync", recording)
        cursor.commit(Position(7, {"bytes": 100}))

    (beside, size), (directory, _) = synced
    assert beside.endswith(".tmp") and size == cursor.path.stat().st_size
    assert directory == "cursors"


def test_rows_of_another_journal_do_not_move_a_cursor(tmp_path):
    """A row number means nothing there; both journals are named."""
    with Cursor(tmp_path, "lines", "r", "a" * 32) as cursor:
        cursor.commit(Position(7, {}))

    with pytest.raises(OtherJournal, match=r"a{32}.*b{32}"):
        Cursor(tmp_path, "lines", "r", "b" * 32)
    with Cursor(tmp_path, "lines", "r", "a" * 32) as cursor:
        assert cursor.position.row == 7


def test_a_cursor_of_before_takes_the_journal_that_it_is_used_with(tmp_path):
    """It did not say, and there was only one."""
    with Cursor(tmp_path, "lines", "r") as cursor:
        cursor.commit(Position(7, {}))
    with Cursor(tmp_path, "lines", "r", "a" * 32) as cursor:
        cursor.commit(Position(8, {}))

    with pytest.raises(OtherJournal):
        Cursor(tmp_path, "lines", "r", "b" * 32)


def test_a_cursor_that_can_not_be_had_leaves_no_lock_and_no_descriptor(tmp_path):
    """The same process may try again: once the other has let go, or the file is mended."""
    with Cursor(tmp_path, "lines", "r") as cursor:
        cursor.commit(Position(7, {}))
        before = sum(1 for _ in Path("/proc/self/fd").iterdir())
        with pytest.raises(CursorLocked):
            Cursor(tmp_path, "lines", "r")
        assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
    whole = cursor.path.read_bytes()
    cursor.path.write_text('{"run_id": "r", "row": "x", "state": {}}')
    with pytest.raises(ValueError, match="damaged"):
        Cursor(tmp_path, "lines", "r")
    cursor.path.write_bytes(whole)

    with Cursor(tmp_path, "lines", "r") as again:
        assert again.position.row == 7


@pytest.mark.parametrize(
    "content",
    [
        '{"run_id": "r", "row": -1, "state": {}}',
        '{"run_id": "r", "row": 1e999, "state": {}}',
        '{"run_id": "r", "row": [], "state": {}}',
        '{"run_id": "r", "row": 1, "state": 5}',
        '{"run_id": "r", "row": 1}',
        '{"run_id": "r", "state": {}}',
        '{"run_id": "r", "row": 1, "state": {}, "ending": []}',
        '{"run_id": "r", "row": 1, "state": {}, "ending": "x"}',
    ],
)
def test_a_damaged_cursor_is_named(tmp_path, content):
    """Fault 44: one error, that the runner tells of; nothing else comes out of it."""
    (tmp_path / "cursors").mkdir()
    (tmp_path / "cursors" / "lines.json").write_text(content)

    with pytest.raises(ValueError, match="damaged"):
        Cursor(tmp_path, "lines", "r")


@pytest.mark.parametrize(("written", "opened"), [("", "a" * 32), ("a" * 32, "")])
def test_a_journal_that_is_not_known_is_no_other_journal(tmp_path, written, opened):
    """A cursor of an earlier version names none, nor does a journal whose headers are damaged."""
    with Cursor(tmp_path, "lines", "r", written) as cursor:
        cursor.commit(Position(7, {}))

    with Cursor(tmp_path, "lines", "r", opened) as cursor:
        assert cursor.position.row == 7


def test_a_sink_that_has_seen_rows_and_holds_none_has_a_cursor_all_the_same(tmp_path):
    """Row 0 is a place like any other: what the sink needs to go on is kept."""
    with Cursor(tmp_path, "lines", "r") as cursor:
        cursor.commit(Position(0, {"seen": 5}))

    with Cursor(tmp_path, "lines", "r") as cursor:
        assert cursor.position == Position(0, {"seen": 5})


def test_a_cursor_that_is_closed_twice_closes_no_descriptor_of_another(tmp_path):
    """The number of its own may have been given to somebody else meanwhile."""
    cursor = Cursor(tmp_path, "lines", "r")
    cursor.close()
    theirs = os.open(tmp_path, os.O_RDONLY)

    cursor.close()

    os.fstat(theirs)
    os.close(theirs)


def test_a_place_without_locks_is_said_and_costs_no_descriptor(tmp_path, monkeypatch):
    """A network file system that was mounted without them."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())

    with pytest.raises(OSError, match="can't be locked: No locks available"):
        Cursor(tmp_path, "lines", "r")

    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
