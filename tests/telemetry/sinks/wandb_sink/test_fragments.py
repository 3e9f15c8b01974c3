"""Fragments, their order, and who still writes them: without wandb."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.sinks.base import SinkUnavailable
from telemetry.sinks.wandb import offline
from telemetry.sinks.wandb.offline import Confirmation, Fragment, Ledger, wait_for_writers
from telemetry.sinks.wandb.run_identity import JOURNAL

from .surroundings import PausingClock
from .test_local import write_ended
from .test_wandb_file import framed, history

rows = st.lists(st.integers(0, 2**40))


@settings(deadline=None)
@given(first=rows, second=rows)
def test_a_ledger_goes_on_where_it_stopped(first: list[int], second: list[int]) -> None:
    assert Ledger().plus(first).plus(second) == Ledger().plus([*first, *second])


@settings(deadline=None)
@given(some=rows.filter(bool), at=st.integers(min_value=0))
def test_a_ledger_tells_a_doubled_and_a_missing_row(some: list[int], at: int) -> None:
    at %= len(some)
    whole = Ledger().plus(some)

    assert Ledger().plus([*some[: at + 1], *some[at:]]) != whole
    assert Ledger().plus([*some[:at], *some[at + 1 :]]) != whole


def test_the_last_row_is_the_greatest_of_all_fragments() -> None:
    held = [Fragment(Path("a"), array("q", [0, 5])), Fragment(Path("b"), array("q"))]
    assert offline.last_row(held) == 5
    assert offline.last_row([]) == -1


def test_a_writer_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    """A killed sink's wandb-core lives on for a moment, and may still write rows."""
    clock = PausingClock()
    answers = iter([[7], [7], []])

    wait_for_writers([tmp_path], clock, clock.pause, lambda paths: next(answers))

    assert next(answers, None) is None


def test_a_writer_that_stays_is_named(tmp_path: Path) -> None:
    """A stopped wandb-core would go on writing behind the rows that were read back."""
    clock = PausingClock()
    began_ns = clock.wall

    with pytest.raises(SinkUnavailable, match=r"\[7\]"):
        wait_for_writers([tmp_path], clock, clock.pause, lambda paths: [7])

    assert clock.wall - began_ns >= 5e9


def test_writers_are_found_by_their_open_files(tmp_path: Path) -> None:
    """A recorded /proc: one process has the file open, one another, one is not ours to see, and
    this process itself reads the file."""
    held = tmp_path / "run-x.wandb"
    held.touch()
    proc = tmp_path / "proc"
    for pid, target in ((10, held), (11, tmp_path / "other"), (os.getpid(), held)):
        fd_dir = proc / str(pid) / "fd"
        fd_dir.mkdir(parents=True)
        (fd_dir / "3").symlink_to(target)
    (proc / "12").mkdir()
    (proc / "self").symlink_to(proc / "10")

    assert offline.writers_of([held], proc) == [10]


def write(path: Path, steps: Iterable[int]) -> None:
    path.write_bytes(framed([history(step).SerializeToString() for step in steps])[0])


def test_a_confirmation_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run-x.wandb"
    confirmation = Confirmation(path)
    for row in (3, 5, 9):
        confirmation.sent(row)

    assert confirmation.read_back() == -1
    write(path, [3, 5])
    assert confirmation.read_back() == 5
    write(path, [3, 5, 9])
    assert confirmation.read_back() == 9


@pytest.mark.parametrize("steps", [[3, 3], [5], [3, 5, 9, 10]], ids=["twice", "hole", "more"])
def test_another_row_than_was_sent_is_noticed(tmp_path: Path, steps: list[int]) -> None:
    confirmation = Confirmation(tmp_path / "run-x.wandb")
    for row in (3, 5, 9):
        confirmation.sent(row)
    write(confirmation.path, steps)

    with pytest.raises(SinkUnavailable, match="was sent"):
        confirmation.read_back()


def test_a_damaged_live_file_makes_the_sink_unavailable(tmp_path: Path) -> None:
    """wandb goes on behind a full disk as if nothing were; a new fragment is whole again."""
    confirmation = Confirmation(tmp_path / "run-x.wandb")
    write(confirmation.path, [])
    confirmation.path.write_bytes(confirmation.path.read_bytes() + bytes(64))

    with pytest.raises(SinkUnavailable, match="damaged"):
        confirmation.read_back()


def test_a_file_that_never_ends_is_not_done(tmp_path: Path) -> None:
    clock = PausingClock()
    confirmation = Confirmation(tmp_path / "run-x.wandb")
    write(confirmation.path, [])

    with pytest.raises(SinkUnavailable, match="not written to its end"):
        confirmation.wait_for_end(clock, clock.pause)


def test_the_end_waits_for_the_rows_before_it(tmp_path: Path) -> None:
    """The last record alone tells nothing of a row that wandb-core has dropped."""
    clock = PausingClock()
    confirmation = Confirmation(tmp_path / "run-x.wandb")
    for row in (3, 5):
        confirmation.sent(row)
    write_ended(confirmation.path, [3])

    with pytest.raises(SinkUnavailable, match="1 rows are missing"):
        confirmation.wait_for_end(clock, clock.pause)


def test_the_end_is_waited_for_until_it_is_written(tmp_path: Path) -> None:
    """wandb says that it has finished before wandb-core has written all."""
    clock = PausingClock()
    confirmation = Confirmation(tmp_path / "run-x.wandb")
    confirmation.sent(3)
    write(confirmation.path, [])
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        clock.pause(seconds)
        if len(pauses) == 3:
            write_ended(confirmation.path, [3])

    confirmation.wait_for_end(clock, pause, limit_s=0.05)

    assert len(pauses) == 3 and (confirmation.is_ended, confirmation.row) == (True, 3)


def test_the_files_of_an_online_run_are_found_by_its_id(tmp_path: Path) -> None:
    """Whole: an id may have hyphens, and may be the end of another."""
    for name in ("run-20260101_000000-a-b", "run-20260101_000001-b", "run-b", "latest-run",
                 "offline-run-20260101_000002-b", "run-20260101_000003-a-b"):  # fmt: skip
        (tmp_path / name).mkdir()

    found = {run: offline.online_files(tmp_path, run) for run in ("b", "a-b", "x")}

    log = "logs/debug-internal.log"
    assert found["b"] == [tmp_path / "run-20260101_000001-b" / log]
    assert sorted(found["a-b"]) == [
        tmp_path / f"run-20260101_00000{number}-a-b" / log for number in (0, 3)
    ]
    assert found["x"] == []


def test_fragments_come_in_the_order_of_their_rows(tmp_path: Path) -> None:
    """Not of their names: a clock was set back. Those without rows come last."""
    rows_of = {"000003": [0, 1], "000001": [4], "000000": [], "000002": [2, 3], "000004": []}
    for second, steps in rows_of.items():
        directory = tmp_path / f"offline-run-20260101_{second}-x"
        directory.mkdir()
        write(directory / "run-x.wandb", steps)

    found = offline.read_fragments(tmp_path, "x")

    assert [fragment.path.parent.name[21:27] for fragment in found] == [
        "000003", "000002", "000001", "000000", "000004",
    ]  # fmt: skip
    assert list(offline.rows_of(found)) == [0, 1, 2, 3, 4]
    assert (offline.first_row(found), offline.last_row(found)) == (0, 4)
    assert offline.first_row(found[3:]) > 2**60


def test_what_is_whole_is_not_cut_and_a_file_without_a_header_neither(tmp_path: Path) -> None:
    """The end of a file whose first bytes are damaged is not known: it stays as it is."""
    whole, headless = tmp_path / "run-x.wandb", tmp_path / "run-y.wandb"
    write(whole, [1, 2])
    headless.write_bytes(b":W&")
    before = {path: path.read_bytes() for path in (whole, headless)}

    offline.cut_torn(Fragment(whole, array("q"), whole.stat().st_size))
    offline.cut_torn(Fragment(headless, array("q"), 0))

    assert {path: path.read_bytes() for path in tmp_path.glob("*run*")} == before


def test_a_file_of_which_only_the_header_is_whole_is_cut_behind_it(tmp_path: Path) -> None:
    """wandb-core was killed in its first record."""
    path = tmp_path / "run-x.wandb"
    write(path, [])
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"torn")

    offline.cut_torn(Fragment(path, array("q"), size))

    assert path.stat().st_size == size
    assert path.with_suffix(f".torn-at-{size}").read_bytes() == b"torn"


def test_the_journal_of_a_fragment_is_the_one_that_its_run_began_with(tmp_path: Path) -> None:
    """A later record of the run may say nothing of it."""
    from wandb.proto.wandb_internal_pb2 import Record

    first, later = Record(num=1), Record(num=2)
    first.run.run_id = later.run.run_id = "x"
    first.run.config.update.add(key=JOURNAL, value_json='"its uuid"')
    path = tmp_path / "offline-run-20260101_000000-x" / "run-x.wandb"
    path.parent.mkdir()
    path.write_bytes(framed([first.SerializeToString(), later.SerializeToString()])[0])

    (fragment,) = offline.read_fragments(tmp_path, "x")

    assert (fragment.journal, fragment.names_run) == ("its uuid", True)


def test_a_disk_that_refuses_a_cut_or_a_move_makes_the_sink_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is tried again later; nothing was changed."""
    directory = tmp_path / "offline-run-20260101_000000-x"
    directory.mkdir()
    path = directory / "run-x.wandb"
    write(path, [1])
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"torn")

    def refusing(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(offline, "write_atomically", refusing)
    with pytest.raises(SinkUnavailable, match="torn end can't be cut"):
        offline.cut_torn(Fragment(path, array("q"), size))
    assert path.stat().st_size == size + 4
    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(SinkUnavailable, match="can't be moved"):
        offline.supersede(tmp_path, "x")
    monkeypatch.setattr(offline, "sync_file", refusing)
    with pytest.raises(SinkUnavailable, match="can't be synced"):
        offline.sync_with_directories(path)
