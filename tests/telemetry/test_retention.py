"""Retention: what may be removed, what must stay, and in which order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from telemetry.files import write_json
from telemetry.journal.writer import JournalWriter
from telemetry.retention import REMOVING, Retention

SINKS = ("tensorboard", "wandb")
MB = 1024 * 1024


def make_run(
    runs: Path, run_id: str, age: int, *, state: str = "ended", done: tuple[str, ...] = SINKS,
    **info: Any,
) -> Path:  # fmt: skip
    """A run of one megabyte; a larger age is an older run."""
    path = runs / run_id
    JournalWriter(path / "journal").close()
    (path / "cursors").mkdir()
    for sink in SINKS:
        write_json(path / "cursors" / f"{sink}.json", {"done": sink in done})
    (path / "ballast").write_bytes(os.urandom(MB))
    write_json(path / "run.json", {"run_id": run_id, "state": state, **info})
    stamp = 2_000_000_000 - age
    os.utime(path / "run.json", (stamp, stamp))
    return path


def left(runs: Path) -> set[str]:
    return {path.name for path in runs.iterdir()}


def test_the_oldest_ended_runs_go_first_and_no_more_than_needed(tmp_path: Path) -> None:
    """Three of a megabyte, room for two: one goes."""
    for run_id, age in (("new", 1), ("old", 3), ("middle", 2)):
        make_run(tmp_path, run_id, age)

    removed = Retention(tmp_path, SINKS, 5 * MB // 2).sweep()

    assert removed == ["old"] and left(tmp_path) == {"new", "middle"}


@pytest.mark.parametrize(
    "kept",
    [
        {"state": "running"},
        {"done": ("tensorboard",)},
        {"done": ("wandb",)},
        {"done": ()},
    ],
)
def test_a_run_that_goes_on_or_is_not_everywhere_yet_stays(
    tmp_path: Path, kept: dict[str, Any]
) -> None:
    """Even where that leaves more bytes than were asked for."""
    make_run(tmp_path, "kept", 9, **kept)
    make_run(tmp_path, "safe", 1)

    Retention(tmp_path, SINKS, 1).sweep()

    assert left(tmp_path) == {"kept"}


def test_wandb_files_that_nobody_uploaded_keep_their_run(tmp_path: Path) -> None:
    """They are the only copy that wandb could be given; once synced, they may go."""
    path = make_run(tmp_path, "r", 1)
    fragment = path / "wandb" / "offline-run-20260101_000000-r"
    fragment.mkdir(parents=True)

    assert Retention(tmp_path, SINKS, 1).sweep() == []
    (fragment / "run-r.wandb.synced").touch()
    assert Retention(tmp_path, SINKS, 1).sweep() == ["r"]


def test_a_run_without_wandb_does_not_wait_for_it(tmp_path: Path) -> None:
    """Disabled is disabled."""
    make_run(tmp_path, "r", 1, done=("tensorboard",), wandb_mode="disabled")

    assert Retention(tmp_path, SINKS, 1).sweep() == ["r"]


def test_a_journal_that_is_open_stays(tmp_path: Path) -> None:
    """Somebody is about to go on with it."""
    path = make_run(tmp_path, "r", 1)

    with JournalWriter(path / "journal"):
        assert Retention(tmp_path, SINKS, 1).sweep() == []

    assert left(tmp_path) == {"r"}


def test_what_a_crash_left_of_a_removal_is_removed(tmp_path: Path) -> None:
    """Under a name that is no run's."""
    make_run(tmp_path, "r", 1).rename(tmp_path / f"{REMOVING}r")

    Retention(tmp_path, SINKS, 100 * MB).sweep()

    assert left(tmp_path) == set()


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    """A repaired copy, a link, somebody's notes."""
    make_run(tmp_path / "elsewhere", "target", 1)
    runs = tmp_path / "runs"
    make_run(runs, "r.repaired", 5)
    (runs / "link").symlink_to(tmp_path / "elsewhere" / "target")
    (runs / "notes").write_text("mine")

    Retention(runs, SINKS, 1).sweep()

    assert left(runs) == {"r.repaired", "link", "notes"}
