"""Crashes of the TensorBoard sink: whatever is cut off, the points are the same in the end."""

from __future__ import annotations

import errno
import os
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.events import (
    ConfigUpdated,
    Event,
    Gap,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
)
from telemetry.journal.rows import ELAPSED, STEP, Row, RunContext, point_of
from telemetry.sinks.base import START, Position, SinkUnavailable
from telemetry.sinks.tensorboard.bounds import Bounds
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.telemetry.sinks.helpers_tensorboard import (
    Found,
    as_float32,
    by_tag,
    read_all,
    scalars,
    sink_in,
    through_json,
    write_all,
)

SOURCES = [
    ("rank0", "s1"),
    ("rank0", "s2"),
    ("rank1", "s1"),
    ("sidecar", "s1"),
    ("hardware:node1", "s1"),
    ("hardware:node2", "s2"),
]
STEPS = st.none() | st.integers(0, 6)
NUMBERS = st.floats(width=32, allow_nan=False) | st.integers(0, 100) | st.booleans()
VALUES = st.dictionaries(st.sampled_from("abcd"), NUMBERS | st.sampled_from(["on", "off"]))
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(MetricsLogged, kind=st.sampled_from(["train", "val"]), step=STEPS, values=VALUES),
    st.builds(MetricsLogged, kind=st.just("hardware"), values=VALUES),
    st.builds(
        HistogramLogged,
        kind=st.just("quant"),
        step=STEPS,
        name=st.sampled_from(["a", "h"]),
        edges=st.just([0.0, 1.0, 2.0]),
        counts=st.just([1.0, 2.0]),
    ),
    st.builds(MessageLogged, level=st.sampled_from(["info", "alert"]), text=st.text(max_size=9)),
    st.builds(Gap, count=st.integers(1, 9), reason=st.just("full")),
    st.just(RunStarted(project="p", name="n", host="node1", config={"lr": 1.0})),
    st.just(ConfigUpdated(config={"model": {"size": 3}})),
    st.just(RunFinished(status="finished", exit_code=0)),
)


@st.composite
def journals(draw: st.DrawFn) -> list[Row]:
    journal = RowMaker()
    for event in draw(st.lists(EVENTS, max_size=30)):
        source, session = draw(st.sampled_from(SOURCES))
        journal.append(event, source, session)
    return journal.rows


def said_in(rows: list[Row]) -> Counter[tuple[str, float, float]]:
    """All that rows say: tag, time and value of every number, but for steps and elapsed time."""
    said: Counter[tuple[str, float, float]] = Counter()
    context = RunContext()
    for row in rows:
        event = row.envelope.event()
        context = context.after(row, event)
        point = point_of(row, event, context)
        for name, value in point.values.items() if point else ():
            if name not in (STEP, ELAPSED) and not isinstance(value, str):
                tag = name.replace("hw/", "~hw/")
                said[tag, point.wall_ns / 1e9, as_float32(float(value))] += 1
    return said


def repeated_in(rows: list[Row]) -> int:
    """The numbers that repeat one of their session, at one step: only those may be missing."""
    seen: Counter[object] = Counter()
    for row in rows:
        event = row.envelope.event()
        if isinstance(event, MetricsLogged) and event.kind != "hardware":
            for name, value in event.values.items():
                if not isinstance(value, str) and event.step is not None:
                    key = row.source, row.session, name, event.step, as_float32(float(value))
                    seen[key] += 1
    return sum(count - 1 for count in seen.values())


def scalars_of(found: list[Found]) -> Counter[tuple[str, float, float]]:
    return Counter(
        (each.tag.removesuffix("/scalar"), each.wall_s, each.value)
        for each in scalars(found)
        if each.tag != STEP
    )


def assert_nothing_falls(found: list[Found]) -> None:
    """The fast loader shows all steps of a tag in a subdirectory that never falls."""
    curves = defaultdict(list)
    for each in found:
        curves[each.directory, each.tag].append(each.step)
    for steps in curves.values():
        assert steps == sorted(steps)


@settings(max_examples=60, deadline=None)
@given(rows=journals())
def test_every_number_of_a_journal_is_written_exactly_once(rows: list[Row]) -> None:
    """Whatever the order of sources, sessions and steps: all but the same value at one step."""
    with tempfile.TemporaryDirectory() as out_dir:
        write_all(Path(out_dir), rows)
        found = read_all(Path(out_dir))

    said, written = said_in(rows), scalars_of(found)
    assert not written - said
    assert (said - written).total() <= repeated_in(rows)
    assert_nothing_falls(found)


@given(rows=journals())
@settings(max_examples=60, deadline=None)
def test_the_last_value_said_at_a_step_is_the_one_shown(rows: list[Row]) -> None:
    """Of the values of a step in one subdirectory the last is shown, and steps are as said."""
    with tempfile.TemporaryDirectory() as out_dir:
        write_all(Path(out_dir), rows)
        found = read_all(Path(out_dir))

    shown = {(each.directory, each.tag, each.step): each.value for each in scalars(found)}
    values = {(tag, step, value) for (_, tag, step), value in shown.items()}
    for row in rows[-1:]:
        event = row.envelope.event()
        if isinstance(event, MetricsLogged) and event.kind != "hardware" and event.step is not None:
            for name, value in event.values.items():
                if not isinstance(value, str):
                    value = as_float32(float(value))
                    tags = (name, f"{name}/scalar")
                    assert any((tag, event.step, value) in values for tag in tags)


@settings(max_examples=60, deadline=None)
@given(
    rows=journals(),
    lives=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), max_size=5),
    data=st.data(),
)
def test_a_sink_killed_anywhere_makes_the_points_of_one_that_was_not(
    rows: list[Row], lives: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Faults 18 and 19: killed between any write and its commit, with anything on disk.

    Each life commits some rows, and is killed in or before the commit of some more.
    """
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as whole:
        out_dir, position = Path(name), START
        for committed, uncommitted in lives:
            sink = sink_in(out_dir)
            first = sink.open(through_json(position))
            half = first + data.draw(st.integers(0, committed), "shown before the commit")
            sink.write(rows[first:half])
            sink.flush()
            sink.write(rows[half : first + committed])
            position = sink.commit()
            sink.write(rows[position.row : position.row + uncommitted])
            _damage(out_dir, position, sink.commit(), data)

        sink = sink_in(out_dir)
        sink.write(rows[sink.open(through_json(position)) :])
        sink.commit()
        write_all(Path(whole), rows)

        assert read_all(out_dir) == read_all(Path(whole))


def _damage(out_dir: Path, position: Position, reached: Position, data: st.DataObject) -> None:
    """Leave what a kill can leave of the files behind a commit: some of them, and garbage."""
    committed = position.state.get("files", {})
    for path in reached.state["files"]:
        full = out_dir / "tensorboard" / path
        kept = full.read_bytes()
        cut = data.draw(st.integers(committed.get(path, 0), len(kept)), "cut")
        full.write_bytes(kept[:cut] + data.draw(st.binary(max_size=5), "garbage"))
    named, length = position.state.get("lasts", ("", 0))
    for path in (out_dir / "cursors").glob("tensorboard.lasts.*"):
        kept = path.read_bytes()
        cut = data.draw(st.integers(length if path.name == named else 0, len(kept)), "cut")
        path.write_bytes(kept[:cut] + data.draw(st.binary(max_size=5), "garbage"))


def test_a_disk_that_fails_at_any_sync_costs_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 18: killed at each point of the commit, in turn."""
    rows = _run_with_a_restart()
    write_all(tmp_path / "whole", rows)
    expected = read_all(tmp_path / "whole")
    disk = FailingDisk(monkeypatch)

    failing_at, failed = 0, True
    while failed:
        failing_at += 1
        out_dir = tmp_path / str(failing_at)
        disk.fail_at(failing_at)
        failed = _write_in_spite_of_failures(out_dir, rows)
        assert read_all(out_dir) == expected

    assert failing_at > 10


def test_a_disk_error_asks_to_be_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed sync nobody knows what is on disk, so nothing more is written to it."""
    rows = _run_with_a_restart()
    write_all(tmp_path / "whole", rows)
    sink = sink_in(tmp_path / "run")
    sink.open(START)
    sink.write(rows)
    FailingDisk(monkeypatch).fail_at(2)

    with pytest.raises(SinkUnavailable, match="No space left"):
        sink.commit()
    with pytest.raises(SinkUnavailable, match="opened"):
        sink.write(rows)
    sink.write(rows[sink.open(START) :])
    sink.commit()

    assert read_all(tmp_path / "run") == read_all(tmp_path / "whole")


def test_what_was_flushed_is_shown_and_is_written_once(tmp_path: Path) -> None:
    """Readers see it before the commit, which adds only what came after."""
    rows = _run_with_a_restart()
    write_all(tmp_path / "whole", rows)
    expected = read_all(tmp_path / "whole")
    sink = sink_in(tmp_path / "run")
    sink.open(START)
    sink.write(rows)
    assert read_all(tmp_path / "run") == []

    sink.flush()

    assert read_all(tmp_path / "run") == expected
    position = sink.commit()
    sink.flush()
    assert read_all(tmp_path / "run") == expected and position.row == len(rows)


def test_what_was_flushed_is_on_disk_after_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit syncs each file and each new directory, although it writes nothing itself."""
    sink = sink_in(tmp_path)
    sink.open(START)
    sink.write(_run_with_a_restart())
    sink.flush()
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr("os.fdatasync", note)
    monkeypatch.setattr("os.fsync", note)
    position = sink.commit()

    files = [tmp_path / "tensorboard" / path for path in position.state["files"]]
    assert {str(path) for path in files} | {str(path.parent) for path in files} <= set(synced)


def test_a_replay_is_the_live_run_and_twice_is_once(tmp_path: Path) -> None:
    """Fault 19: replayed into the same place, killed in the middle and repeated."""
    bounds = Bounds(buffer_bytes=200)
    rows = _run_with_a_restart()
    write_all(tmp_path / "live", rows, bounds)
    expected = read_all(tmp_path / "live")

    killed = sink_in(tmp_path / "replay", bounds)
    killed.open(START)
    killed.write(rows[:17])
    for _ in range(2):
        write_all(tmp_path / "replay", rows, bounds)

    assert read_all(tmp_path / "replay") == expected


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """Only files with a row in their name are the sink's own."""
    rows = _run_with_a_restart()
    other = tmp_path / "tensorboard" / "rank0" / "events.out.tfevents.1700000000.host.1.0"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"")

    write_all(tmp_path, rows)
    write_all(tmp_path, rows)

    assert other.exists()


def test_committed_files_that_are_gone_are_written_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The journal has everything, so a damaged sink starts over and says so."""
    rows = _run_with_a_restart()
    position = write_all(tmp_path, rows)
    expected = read_all(tmp_path)
    next(iter((tmp_path / "tensorboard" / "rank0").iterdir())).unlink()

    sink = sink_in(tmp_path)
    next_row = sink.open(position)
    sink.write(rows[next_row:])
    sink.commit()
    sink.close()

    assert next_row == 0
    assert "written anew" in caplog.text
    assert read_all(tmp_path) == expected


def test_a_position_that_makes_no_sense_starts_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a later version left it."""
    sink = sink_in(tmp_path)

    assert sink.open(Position(12, {"files": 3})) == 0
    assert "written anew" in caplog.text


def test_a_run_that_reopens_after_its_end_goes_on(tmp_path: Path) -> None:
    """An ended run is no special case: its last row is a row like any other."""
    rows = _run_with_a_restart()
    write_all(tmp_path / "whole", rows)
    position = write_all(tmp_path / "run", rows[:20])

    sink = sink_in(tmp_path / "run")
    next_row = sink.open(through_json(position))
    sink.write(rows[next_row:])
    sink.finish("finished", 0)
    sink.close()
    sink.close()

    assert read_all(tmp_path / "run") == read_all(tmp_path / "whole")


def test_a_commit_without_rows_moves_nothing(tmp_path: Path) -> None:
    """Opening and closing again makes no files."""
    sink = sink_in(tmp_path)
    sink.open(START)

    assert sink.commit().row == 0
    assert not list(tmp_path.iterdir())


def test_rows_reach_the_disk_before_memory_grows(tmp_path: Path) -> None:
    """A replay of a long journal holds no more than the buffer between two commits."""
    sink = sink_in(tmp_path, Bounds(buffer_bytes=1000))
    sink.open(START)

    sink.write(_run_with_a_restart())

    assert by_tag(read_all(tmp_path), "train/loss", "rank0")


class FailingDisk:
    """A disk whose n-th sync fails, as a full one may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left = 0
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    def fail_at(self, number: int) -> None:
        self._left = number

    def _failing(self, sync):  # type: ignore[no-untyped-def]
        def failing(descriptor: int) -> None:
            self._left -= 1
            if self._left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        return failing


def _write_in_spite_of_failures(out_dir: Path, rows: list[Row]) -> bool:
    """Write with a commit every seven rows, from the last position after a failure."""
    position, failed = START, False
    while position.row < len(rows):
        sink = sink_in(out_dir)
        try:
            next_row = sink.open(through_json(position))
            while next_row < len(rows):
                sink.write(rows[next_row : next_row + 4])
                sink.flush()
                sink.write(rows[next_row + 4 : next_row + 7])
                position = sink.commit()
                next_row = position.row
        except SinkUnavailable:
            failed = True
    return failed


def _run_with_a_restart() -> list[Row]:
    journal = RowMaker()
    for session, first in (("s1", 0), ("s2", 4)):
        journal.start(session=session, config={"lr": 0.5})
        for step in range(first, first + 7):
            stage = "warmup" if step < 3 else "full_ternary"
            values = {"train/loss": 1.0 / (step + 1), "train/training_stage": stage}
            journal.metrics(step, values, session=session)
            journal.hardware({"cpu_percent": float(step)})
        journal.metrics(first, {"train/loss": 9.0}, session=session)
        journal.append(RunFinished(status="failed", exit_code=1), session=session)
    return journal.rows
