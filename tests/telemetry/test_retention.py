"""Retention: what may be removed, what must stay, and in which order."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from shared.wire import Nack
from telemetry.journal.layout import segments
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import read_json, write_json
from telemetry.run_dir import CursorState, RunState, sink_is_done
from telemetry.supervise.removal import REMOVING
from telemetry.supervise.retention import Retention, read_tombstone
from tests.fakes import ManualClock
from tests.telemetry.journal.helpers import write
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import Producer, Station, finished, metric, started

SINKS = ("tensorboard", "wandb")
MB = 1024 * 1024


def make_run(
    runs: Path, run_id: str, age: int, *, state: str = "ended", done: tuple[str, ...] = SINKS,
    **info: Any,
) -> Path:  # fmt: skip
    """A run of one megabyte; a larger age is an older run."""
    path = runs / run_id
    with JournalWriter(path / "journal") as writer:
        write(writer, 3)
        writer.sync()
    (path / "cursors").mkdir()
    for sink in SINKS:
        is_done = sink in done
        cursor = {"run_id": run_id, "row": 3, "state": {}, "done": is_done, "ending": 2}
        write_json(path / "cursors" / f"{sink}.json", cursor)
    (path / "ballast").write_bytes(os.urandom(MB))
    end = {"state": state, "endings": 2, "as_of_row": 3}
    write_json(path / "run.json", {"run_id": run_id, **end, **info})
    stamp = 2_000_000_000 - age
    os.utime(path / "run.json", (stamp, stamp))
    return path


def left(runs: Path) -> set[str]:
    return {path.name for path in runs.iterdir()}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The directory of runs in a data directory."""
    path = tmp_path / "data" / "runs"
    path.mkdir(parents=True)
    return path


def test_the_oldest_ended_runs_go_first_and_no_more_than_needed(tmp_path: Path) -> None:
    """Three of a megabyte, room for two: one goes."""
    for run_id, age in (("new", 1), ("old", 3), ("middle", 2)):
        make_run(tmp_path, run_id, age)

    removed = Retention(tmp_path, SINKS, 5 * MB // 2).sweep()

    assert removed == ["old"] and left(tmp_path) == {"new", "middle"}


def test_kept_columns_go_before_any_run(tmp_path: Path) -> None:
    """They can be made again; as many as needed, of the oldest run first, even if it goes on."""
    for run_id, age in (("new", 1), ("old", 3), ("middle", 2)):
        state = "running" if run_id == "old" else "ended"
        columns = make_run(tmp_path, run_id, age, state=state) / "columns"
        columns.mkdir()
        (columns / "0.chunk").write_bytes(os.urandom(MB))

    removed = Retention(tmp_path, SINKS, 9 * MB // 2).sweep()

    assert removed == [] and left(tmp_path) == {"new", "middle", "old"}
    assert [path.parent.name for path in tmp_path.glob("*/columns")] == ["new"]


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


ANYTHING = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"7",
    b'"done"',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 10_000,
    b"\xff\xfe\x00",
    b"{}",
    b'{"done": 1, "ending": 2}',
    b'{"done": "yes", "ending": 2}',
    b'{"done": true}',
    b'{"done": true, "ending": null}',
    b'{"done": true, "ending": "2"}',
    b'{"done": true, "ending": 2.0}',
    b'{"done": true, "ending": [2]}',
    b'{"done": true, "ending": NaN}',
    b'{"done": true, "ending": 1e999}',
    b'{"done": true, "ending": 2, "run_id": "other"}',
    b'{"done": true, "ending": 2, "run_id": {}}',
)


@pytest.mark.parametrize("content", ANYTHING)
def test_a_damaged_cursor_keeps_its_run_and_no_other(runs: Path, content: bytes) -> None:
    """Fault 44: whatever is in it, nobody can tell any more that the sink has all of it."""
    (make_run(runs, "damaged", 9) / "cursors" / "wandb.json").write_bytes(content)
    make_run(runs, "safe", 1)

    assert Retention(runs, SINKS, 1).sweep() == ["safe"]
    assert left(runs) == {"damaged"}


RUN_JSON = (
    b'{"state": "ended"}',
    b'{"state": ["ended"], "endings": 2, "as_of_row": 3}',
    b'{"state": "ended", "endings": 2, "as_of_row": "x"}',
    b'{"state": "ended", "endings": 2, "as_of_row": 3.0}',
    b'{"state": "ended", "endings": 2, "as_of_row": 1e999}',
    b'{"state": "ended", "endings": 2, "as_of_row": -1}',
    b'{"state": "ended", "endings": 2, "as_of_row": 4}',
    b'{"state": "ended", "endings": "2", "as_of_row": 3}',
    b'{"state": "ended", "endings": 2.0, "as_of_row": 3}',
    b'{"state": "ended", "endings": 2, "as_of_row": 3, "run_id": "other"}',
)


@pytest.mark.parametrize("content", ANYTHING + RUN_JSON)
def test_a_damaged_run_json_keeps_its_run_and_no_other(runs: Path, content: bytes) -> None:
    """Fault 44: a run that can't be told to have ended is one that goes on."""
    (make_run(runs, "damaged", 9) / "run.json").write_bytes(content)
    make_run(runs, "safe", 1)

    assert Retention(runs, SINKS, 1).sweep() == ["safe"]
    assert left(runs) == {"damaged"}


@pytest.mark.parametrize("name", ["run.json", "cursors/wandb.json", "cursors", "journal"])
def test_what_is_not_even_a_file_keeps_its_run(runs: Path, name: str) -> None:
    """A pipe would be waited for; a directory can't be read."""
    path = make_run(runs, "damaged", 9) / name
    path.rename(path.with_name("away"))
    os.mkfifo(path)
    make_run(runs, "safe", 1)

    assert Retention(runs, SINKS, 1).sweep() == ["safe"]


def test_a_run_that_ended_again_waits_for_its_sinks_again(runs: Path) -> None:
    """They were done with its first end; the late rows behind it they don't have."""
    path = make_run(runs, "r", 1, endings=3)
    assert Retention(runs, SINKS, 1).sweep() == []

    for sink in SINKS:
        write_json(path / "cursors" / f"{sink}.json", {"done": True, "ending": 3, "run_id": "r"})

    assert Retention(runs, SINKS, 1).sweep() == ["r"]


def test_rows_behind_the_end_keep_their_run(runs: Path) -> None:
    """They were acknowledged, and run.json does not know of them yet."""
    path = make_run(runs, "r", 1)
    with JournalWriter(path / "journal") as writer:
        mark = (path / "journal" / "durable").read_bytes()
        write(writer, 1)
        writer.sync()
    assert Retention(runs, SINKS, 1).sweep() == []

    # The mark is not synced with each row: after a power cut it may be an older one.
    (path / "journal" / "durable").write_bytes(mark)

    assert Retention(runs, SINKS, 1).sweep() == []


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_run_as_the_sidecar_leaves_it_may_go(tmp_path: Path, is_restarted: bool) -> None:
    """With workers, a hardware stream, late events behind its end, and another end; and its
    producers are told afterwards that it is gone."""
    station = Station(tmp_path, ManualClock())
    for source, session in (("rank0", "s1"), ("rank0.worker0", "w"), ("hardware:node1", "h")):
        producer = Producer(station, session, source=source, peer=session.encode())
        producer.hello()
        producer.emit(*([started()] if source == "rank0" else []), metric(0))
        producer.emit(*([finished()] if source == "rank0" else []))
        producer.fin()
    station.settle()
    late = Producer(station, "s0", peer=b"late", late=True)
    late.hello()
    late.emit(metric(9))
    late.fin()
    station.settle()
    station = station.restarted() if is_restarted else station
    station.settle()
    info = read_json(station.path / "runs" / "r" / "run.json") or {}
    assert info["state"] == "ended" and info["endings"] == 2

    removed = Retention(station.path / "runs", (), 1).sweep()

    tombstone = read_tombstone(tmp_path, "r")
    assert removed == ["r"] and tombstone is not None
    entry = tombstone.entry("s0", "rank0")
    assert entry is not None and entry.durable_seq == 0
    assert isinstance(Producer(station, "s0", peer=b"again", late=True).hello(), Nack)
    station.killed()


def test_supervisor_and_retention_ask_the_same_question() -> None:
    """A sink is done with an ending, not with a run."""
    run = RunState(run_id="r", endings=2)

    assert sink_is_done(CursorState(run_id="r", done=True, ending=2), run)
    assert not sink_is_done(CursorState(run_id="r", done=True, ending=1), run)
    assert not sink_is_done(CursorState(run_id="r", done=False, ending=2), run)
    assert not sink_is_done(CursorState(run_id="q", done=True, ending=2), run)
    assert not sink_is_done(None, run)


def test_files_of_before_that_name_no_run_and_no_ending_are_of_this_run() -> None:
    """They lie in its directory; only another run's name says otherwise."""
    assert sink_is_done(CursorState(done=True, ending=2), RunState(run_id="r", endings=2))
    assert sink_is_done(CursorState(run_id="r", done=True, ending=2), RunState(endings=2))
    assert sink_is_done(CursorState(run_id="r", done=True), RunState(run_id="r", endings=None))
    assert not sink_is_done(CursorState(run_id="r", done=True, ending=1), RunState(run_id="r"))


# --- tombstones


def test_a_removed_run_leaves_a_tombstone(runs: Path) -> None:
    """With the journal's uuid and its streams: what it had of each is known for ever."""
    path = make_run(runs, "r", 1)
    uuid = segments(path / "journal")[0].path.read_bytes()[16:32]

    Retention(runs, SINKS, 1).sweep()

    found = read_tombstone(runs.parent, "r")
    assert found is not None and found.uuids == (uuid.hex(),)
    entry = found.entry("session", "rank0")
    assert entry is not None and entry.durable_seq == 2
    assert found.entry("another", "rank0") is None
    assert found.removed_wall_s > 1e9 and "make room" in found.reason


def test_a_run_that_was_never_removed_has_no_tombstone(runs: Path) -> None:
    make_run(runs, "r", 1)

    assert read_tombstone(runs.parent, "r") is None
    assert read_tombstone(runs.parent, "never") is None
    with pytest.raises(ValueError):
        read_tombstone(runs.parent, "../r")


def test_the_tombstone_is_there_before_anything_goes(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the two leaves the run as it was, and the next sweep removes it."""
    make_run(runs, "r", 1)

    def crash(self: Path, target: Path) -> None:
        assert (runs.parent / "removed" / "r.json").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", crash)
        Retention(runs, SINKS, 1).sweep()

    assert left(runs) == {"r"} and read_tombstone(runs.parent, "r") is None
    assert Retention(runs, SINKS, 1).sweep() == ["r"]
    assert read_tombstone(runs.parent, "r") is not None


def test_without_a_tombstone_nothing_goes(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No room for one, or a journal that does not tell which it is: said once."""
    (runs.parent / "removed").write_text("not a directory")
    headless = make_run(runs, "headless", 2)
    segments(headless / "journal")[0].path.write_bytes(bytes(100))
    make_run(runs, "r", 1)
    retention = Retention(runs, SINKS, 1)

    assert retention.sweep() == [] and retention.sweep() == []

    assert left(runs) == {"r", "headless"}
    assert len([r for r in caplog.records if "run=r " in r.getMessage()]) == 1


def test_a_run_begun_again_under_the_id_of_a_removed_one_has_both_in_its_tombstone(
    runs: Path,
) -> None:
    """Each journal has a uuid of its own, and none of them is forgotten."""
    make_run(runs, "r", 1)
    Retention(runs, SINKS, 1).sweep()
    first = read_tombstone(runs.parent, "r")
    make_run(runs, "r", 1)
    meanwhile = read_tombstone(runs.parent, "r")

    Retention(runs, SINKS, 1).sweep()

    second = read_tombstone(runs.parent, "r")
    assert first is not None and second is not None and meanwhile == first
    assert second.uuids[0] == first.uuids[0] and len(set(second.uuids)) == 2


def test_a_damaged_tombstone_still_says_that_its_run_is_gone(runs: Path) -> None:
    make_run(runs, "r", 1)
    Retention(runs, SINKS, 1).sweep()
    (runs.parent / "removed" / "r.json").write_bytes(b"[" * 100_000)

    found = read_tombstone(runs.parent, "r")

    assert found is not None and found.streams == () and "damaged" in found.reason


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


def test_a_run_without_wandb_waits_for_its_other_sinks(tmp_path: Path) -> None:
    """Disabled is wandb, and nothing else."""
    make_run(tmp_path, "r", 1, done=("wandb",), wandb_mode="disabled")

    assert Retention(tmp_path, SINKS, 1).sweep() == []


def test_a_journal_that_is_open_stays(tmp_path: Path) -> None:
    """Somebody is about to go on with it."""
    path = make_run(tmp_path, "r", 1)

    with JournalWriter(path / "journal"):
        assert Retention(tmp_path, SINKS, 1).sweep() == []

    assert left(tmp_path) == {"r"}


def test_what_a_crash_left_of_a_removal_goes_at_the_next_start(runs: Path) -> None:
    """Under a name that is no run's; also where there is no bound any more."""
    make_run(runs, "r", 1).rename(runs / f"{REMOVING}r.1")
    retention = Retention(runs, SINKS, 0)

    retention.start()

    assert wait_until(lambda: left(runs) == set(), 10)
    retention.close()


def test_half_a_run_never_comes_back(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its new name is on disk before the first of its bytes goes."""
    make_run(runs, "r", 1)
    order: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (order.append(f"sync {sorted(left(runs))[0][:10]}"), fsync(fd))
    )
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: order.append("remove"))

    Retention(runs, SINKS, 1).sweep()

    assert order[-2:] == ["sync .removing-", "remove"]


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    """A repaired copy, a link, somebody's notes."""
    make_run(tmp_path / "elsewhere", "target", 1)
    runs = tmp_path / "runs"
    make_run(runs, "r.repaired", 5)
    (runs / "link").symlink_to(tmp_path / "elsewhere" / "target")
    (runs / "notes").write_text("mine")

    Retention(runs, SINKS, 1).sweep()

    assert left(runs) == {"r.repaired", "link", "notes"}
