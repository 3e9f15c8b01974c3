"""A row at which a sink dies: stepped over if it is the row's own doing, and only then."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.clock import SystemClock
from shared.events import encode_event, join_events
from shared.ids import StreamId
from telemetry.errors import EXIT_OK
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import read_json, write_json
from telemetry.run_dir import RunDir
from telemetry.sinks.base import SinkContext
from telemetry.sinks.runner import Reporter, SinkJob, run_sink
from telemetry.sinks.skips import read_skips
from telemetry.supervise.sink_process import Pauses
from telemetry.supervise.supervisor import Supervisor
from tests.telemetry import stepping
from tests.telemetry.sinks.lines_sink import LinesSink, Trouble, lines
from tests.telemetry.stepping import BAD_ROW
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import metric

COUNT = 60


class Place:
    """One ended run, and a supervisor that watches over a sink which dies as the test says."""

    def __init__(self, directory: Path) -> None:
        self.run_dir = directory / "r"
        self.run_dir.mkdir()
        info = {"run_id": "r", "name": "n", "state": "ended", "endings": 1}
        write_json(self.run_dir / "run.json", info)
        with JournalWriter(self.run_dir / "journal") as writer:
            payload = join_events([encode_event(metric(row), 1, 1) for row in range(COUNT)])
            writer.append(StreamId("r", "s1", "rank0"), 0, COUNT, payload)
            writer.sync()
        self.supervisor = Supervisor(
            directory, ("lines",), SystemClock(),
            max_processes=1, sink_timeout_s=1.5, command=self.command,
            pauses=Pauses(poll_s=0.02, first_s=0.05, max_s=0.2),
        )  # fmt: skip

    def command(self, sink: str, run_dir: Path) -> list[str]:
        return [sys.executable, stepping.__file__, sink, str(run_dir), "--follow"]

    def dies(self, mode: str) -> None:
        (self.run_dir / "mode").write_text(mode)

    @property
    def skips(self) -> Path:
        return RunDir(self.run_dir).skips("lines")

    @property
    def starts(self) -> int:
        path = self.run_dir / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def carried(self) -> list[int]:
        return lines(self.run_dir / "lines.jsonl")

    def is_done(self) -> bool:
        return bool((read_json(self.run_dir / "cursors" / "lines.json") or {}).get("done"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    place.dies("nowhere")
    yield place
    place.supervisor.end(0)


@pytest.mark.parametrize("how", ["raise", "abort", "segv", "bus"])
def test_a_row_at_which_a_sink_dies_each_time_is_stepped_over(place, how, capfd):
    """After the second death; the rest arrives, and it is told. Fault 43."""
    place.dies(f"row {how}")
    place.supervisor.start()

    wait_until(place.is_done, 60)

    assert place.carried == [row for row in range(COUNT) if row != BAD_ROW]
    assert place.starts == 3
    (skip,) = read_skips(place.skips)
    assert skip.row == BAD_ROW and "crashed 2 times" in skip.reason
    wait_until(lambda: [s.skipped for s in place.supervisor.snapshot()] in ([1], []))
    said = capfd.readouterr().err
    assert said.count(f"steps over row {BAD_ROW}") == 1 and len(said) < 12_000


@pytest.mark.parametrize("how", ["kill", "term", "memory", "room"])
def test_a_death_that_comes_from_outside_is_held_against_no_row(place, how):
    """However often it comes while one row is announced. Fault 47."""
    place.dies(f"row {how}")
    place.supervisor.start()
    wait_until(lambda: place.starts >= 4, 60)

    place.dies("nowhere")
    wait_until(place.is_done, 60)

    assert place.carried == list(range(COUNT))
    assert read_skips(place.skips) == []


def test_a_sink_that_hangs_at_a_row_is_killed_and_steps_over_nothing(place):
    """Frozen and killed twice at one row: that was the supervisor's doing. Fault 47."""
    place.dies("row hang")
    place.supervisor.start()
    wait_until(lambda: place.starts >= 3, 60)

    place.dies("nowhere")
    wait_until(place.is_done, 60)

    assert place.carried == list(range(COUNT)) and read_skips(place.skips) == []


@pytest.mark.parametrize("where", ["open", "finish"])
def test_a_crash_in_another_phase_steps_over_nothing(place, where):
    """Only the run backs off."""
    place.dies(f"{where} raise")
    place.supervisor.start()
    wait_until(lambda: place.starts >= 4, 60)

    place.dies("nowhere")
    wait_until(place.is_done, 60)

    assert place.carried == list(range(COUNT)) and read_skips(place.skips) == []


def test_a_drain_waits_for_what_may_still_recover(place):
    """A row that was met right before the end costs its two processes within the grace time."""
    place.dies("row raise")

    place.supervisor.end(30)

    assert place.is_done() and not place.supervisor.backlog


def test_a_drain_does_not_wait_for_what_dies_each_time(place):
    """Not to the end of its grace time."""
    place.dies("open raise")

    place.supervisor.end(1000)

    assert place.supervisor.backlog == {("r", "lines")} and place.starts <= 5


def carrying_lines(_: str, context: SinkContext) -> LinesSink:
    return LinesSink(context, Trouble())


def test_a_replay_steps_over_the_same_rows(place, tmp_path):
    """Live and replay agree on what the sink holds."""
    place.dies("row abort")
    place.supervisor.start()
    wait_until(place.is_done, 60)

    out = tmp_path / "out"
    code = run_sink(
        SinkJob("lines", place.run_dir, out, False, {}, carrying_lines), threading.Event(),
        Reporter(None),
    )  # fmt: skip

    assert code == EXIT_OK and lines(out / "lines.jsonl") == place.carried
