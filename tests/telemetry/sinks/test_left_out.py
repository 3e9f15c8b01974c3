"""Values for which a sink has no place: counted where people look."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from telemetry.commands.inspect import inspect
from telemetry.http import Collector, Health
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json
from telemetry.sinks.base import Position, left_out_of
from telemetry.sinks.runner import Reporter
from telemetry.watch.facts import SinkStatus


def test_inspect_says_how_many_values_a_sink_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As its position has it."""
    run_dir = tmp_path / "r"
    JournalWriter(run_dir / "journal").close()
    write_json(run_dir / "run.json", {"run_id": "r", "name": "n", "state": "ended"})
    (run_dir / "cursors").mkdir()
    for sink, state in (("tensorboard", {"left_out": 1200}), ("console", {"left_out": "x"})):
        cursor = {"run_id": "r", "row": 0, "state": state, "done": True}
        write_json(run_dir / "cursors" / f"{sink}.json", cursor)

    inspect(run_dir)

    lines = capsys.readouterr().out.splitlines()
    (told,) = [line for line in lines if "left out" in line]
    assert told.startswith("sink tensorboard:") and "1,200 values left out" in told


def test_metrics_have_the_count_of_each_sink() -> None:
    """With the run's id, as all that is said of sinks."""
    status = SinkStatus("r", "tensorboard", "running", 5, 0, "", left_out=7)
    registry = CollectorRegistry()
    registry.register(Collector(lambda: Health(sinks=[status])))

    text = generate_latest(registry).decode()

    assert 'telemetry_sink_left_out_values{run_id="r",sink="tensorboard"} 7.0' in text


def test_a_sink_process_tells_its_count() -> None:
    """Only where there is one, so that nobody has to know of it."""
    read_fd, write_fd = os.pipe()
    report = Reporter(write_fd)
    report("running", 5)
    report.left_out = 3
    report("running", 6)
    first, second = map(json.loads, os.read(read_fd, 1000).splitlines())
    os.close(read_fd)
    os.close(write_fd)

    assert "left_out" not in first and second["left_out"] == 3


@pytest.mark.parametrize(("state", "count"), [({}, 0), ({"left_out": 4}, 4), ({"left_out": {}}, 0)])
def test_a_position_that_says_nothing_left_out_nothing(
    state: dict[str, object], count: int
) -> None:
    """Most sinks have a place for all."""
    assert left_out_of(Position(0, state)) == count
