"""Fragments, their order, and who still writes them: without wandb."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.sinks.base import SinkUnavailable
from telemetry.sinks.wandb import offline
from telemetry.sinks.wandb.offline import Confirmation, Fragment, Ledger, wait_for_writers

from .surroundings import PausingClock
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
    """A recorded /proc: one process has the file open, one another, one is not ours to see."""
    held = tmp_path / "run-x.wandb"
    held.touch()
    proc = tmp_path / "proc"
    for pid, target in ((10, held), (11, tmp_path / "other")):
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
