"""Rows that a sink steps over: kept durably, and withheld live and in every replay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from telemetry.sinks.skips import Skips, read_skips


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "cursors").mkdir()
    return tmp_path / "cursors" / "lines.skipped"


def test_what_is_stepped_over_is_known_to_the_next_process_and_to_people(path):
    """Row, reason and version, in the order of rows."""
    skips = Skips(path)
    skips.add(7, "crashed\x1b[2J")
    skips.add(3, "refused")

    again = Skips(path)

    assert 7 in again and 3 in again and 5 not in again and len(again) == 2
    shown = sorted(read_skips(path))
    assert [(skip.row, skip.reason) for skip in shown] == [(3, "refused"), (7, "crashed\\x1b[2J")]
    assert all(skip.version for skip in shown)


def test_a_line_cut_by_a_crash_counts_for_nothing_and_spoils_no_later_one(path):
    """Cut at every byte of the last line."""
    Skips(path).add(1, "first")
    whole = path.read_bytes()
    Skips(path).add(2, "second")
    both = path.read_bytes()
    for cut in range(len(whole), len(both) - 1):
        path.write_bytes(both[:cut])

        Skips(path).add(3, "third")

        assert [skip.row for skip in read_skips(path)] == [1, 3]


def test_the_first_row_is_stepped_over_behind_a_line_of_one_byte(path):
    """Row 0 is a row, and the first line may be the one that was cut short."""
    path.write_bytes(b"{")

    Skips(path).add(0, "first")

    assert [skip.row for skip in read_skips(path)] == [0]


def test_it_is_on_disk_before_the_sink_goes_on(path, monkeypatch):
    """The file, and where it is new the directory that names it."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), real(fd)),
    )

    Skips(path).add(1, "x")

    assert synced == [str(path), str(path.parent)]


def test_a_replay_steps_over_what_the_live_sink_stepped_over(path, tmp_path):
    """And notes its own findings beside its own cursor only."""
    Skips(path).add(1, "live")
    elsewhere = tmp_path / "out.skipped"
    replayed = Skips(elsewhere, path)
    replayed.add(2, "in the replay")

    assert 1 in replayed and 2 in replayed
    assert [skip.row for skip in read_skips(path)] == [1]
    assert [skip.row for skip in read_skips(elsewhere)] == [2]


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'{"row": -1, "reason": "", "version": ""}',
        b'{"row": true, "reason": "", "version": ""}',
        b'{"row": 1}',
        b"[" * 100_000,
    ],
)
def test_lines_that_are_none_are_passed_over(path, line):
    """Whoever wrote them."""
    path.write_bytes(line + b"\n")

    assert read_skips(path) == []
