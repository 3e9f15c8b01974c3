"""Which runs the supervisor looks at: all that may have work, and of the settled a few in turn."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from telemetry.run_dir import RunState
from telemetry.supervise.due_runs import RELISTED_EACH, SETTLED_EACH_TIME, DueRuns


def name_of(number: int) -> str:
    return f"20260101-000000-{number:08x}"


def settle(runs: DueRuns, names: list[str]) -> None:
    for name in names:
        runs.settle(name)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "runs"
    for number in range(100):
        (directory / name_of(number)).mkdir(parents=True)
    return directory


def test_settled_runs_are_looked_at_in_turn_a_few_each_time(place):
    runs = DueRuns(place)
    first = runs.due()
    settle(runs, first)
    seen: list[str] = []
    for _ in range(100 // SETTLED_EACH_TIME + 1):
        due = runs.due()
        assert len(due) == SETTLED_EACH_TIME
        seen += due
        settle(runs, due)
    assert first == sorted(map(name_of, range(100))) and set(seen) == set(first)


def test_all_are_looked_at_where_that_is_asked(place):
    runs = DueRuns(place)
    settle(runs, runs.due())
    assert runs.due(everything=True) == sorted(map(name_of, range(100)))


def test_a_run_with_work_is_looked_at_each_time(place):
    runs = DueRuns(place)
    settle(runs, runs.due()[1:])
    for _ in range(30):
        due = runs.due()
        assert due[0] == name_of(0)
        settle(runs, due[1:])


def test_a_run_that_is_open_again_is_looked_at_until_the_time_after_it_is_closed(place):
    """What is written last, before it is closed, is read then."""
    is_open = [name_of(99)]
    runs = DueRuns(place, lambda: is_open)
    settle(runs, runs.due())
    settle(runs, runs.due())
    assert name_of(99) in runs.due()

    is_open.clear()
    due = runs.due()
    assert name_of(99) in due
    settle(runs, due)
    assert name_of(99) not in runs.due()


def test_new_runs_are_found_and_removed_ones_forgotten(place):
    runs = DueRuns(place)
    settle(runs, runs.due())
    (place / name_of(0)).rmdir()
    (place / name_of(1)).rmdir()
    (place / "a run.repaired").mkdir()
    (place / name_of(100)).mkdir()
    everything = runs.due(everything=True)
    assert everything == sorted(map(name_of, range(2, 101)))


def test_a_run_is_found_whose_directory_came_within_one_tick_of_the_clock(place):
    """The time of the parent is then as it was."""
    runs = DueRuns(place)
    settle(runs, runs.due())
    before = place.stat().st_mtime_ns
    (place / name_of(100)).mkdir()
    os.utime(place, ns=(before, before))
    found = [name for _ in range(RELISTED_EACH) for name in runs.due() if name == name_of(100)]
    assert found


def test_a_directory_that_is_not_there_has_no_runs(tmp_path):
    runs = DueRuns(tmp_path / "runs")
    assert runs.due() == []
    (tmp_path / "runs" / name_of(1)).mkdir(parents=True)
    assert runs.due() == [name_of(1)]


def test_a_file_is_read_again_when_it_was_replaced(place):
    """Also by one of the same time, as two writes within a tick of the clock make."""
    runs = DueRuns(place)
    path = place / name_of(1) / "run.json"
    assert runs.read(name_of(1), path, RunState) is None
    for state in ("running", "ended"):
        fresh = path.with_suffix(".new")
        fresh.write_text(f'{{"run_id": "{name_of(1)}", "state": "{state}"}}')
        os.utime(fresh, ns=(10**18, 10**18))
        fresh.replace(path)
        found = runs.read(name_of(1), path, RunState)
        assert found is not None and found.state == state
        assert runs.read(name_of(1), path, RunState) is found
