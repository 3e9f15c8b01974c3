"""An alert in every view: console, TensorBoard, W&B and run.json say the same."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.events import AlertChanged
from telemetry.alerts.standing import STANDING_MAX, after, without_former
from telemetry.ingest.run import Run
from telemetry.json_files import read_json
from telemetry.run_dir import RunDir, RunFile
from telemetry.sinks.base import START, SinkContext
from telemetry.sinks.console import ConsoleSink
from telemetry.sinks.tensorboard.row_entries import Policy as TensorBoardPolicy
from telemetry.sinks.tensorboard.row_entries import PolicyState
from telemetry.sinks.wandb.selection import Alert, Policy
from tests.fakes import ManualClock
from tests.telemetry.sinks.helpers_rows import RowMaker

HOT = AlertChanged(name="gpu_throttled", subject="gpu/0", text="GPU 0 of n1 is hot")
COOL = AlertChanged(name="gpu_throttled", subject="gpu/0", is_active=False, lasted_s=12.0)


@pytest.fixture
def journal() -> RowMaker:
    made = RowMaker()
    made.append(HOT, "hardware:n1")
    made.append(COOL, "hardware:n1")
    return made


def test_the_console_prints_the_onset_and_the_end(journal):
    """With the time that it lasted."""
    stream = io.StringIO()
    sink = ConsoleSink(SinkContext("run", Path(), RunFile(), {}), stream)  # type: ignore[arg-type]
    sink.open(START)
    sink.write(journal.rows)

    begun, over = stream.getvalue().splitlines()
    assert begun.endswith("warning  gpu_throttled gpu/0: GPU 0 of n1 is hot")
    assert over.endswith("info     gpu_throttled gpu/0 is over after 12 s")


def test_tensorboard_has_a_text_of_each(journal):
    """Under messages, by their level."""
    policy = TensorBoardPolicy(PolicyState())
    entries = [entry for row in journal.rows for entry in policy.entries(row)]

    texts = {tag: extra.text for entry in entries for tag, extra in entry.extras}
    assert texts["messages/warning"] == "gpu_throttled gpu/0: GPU 0 of n1 is hot"
    assert texts["messages/info"] == "gpu_throttled gpu/0 is over after 12 s"


def test_wandb_gets_a_row_of_each_and_one_notification(journal):
    """People are not woken by the end of an alert."""
    policy, onset = Policy().after(journal.rows[0])
    _, end = policy.after(journal.rows[1])

    text = "gpu_throttled gpu/0: GPU 0 of n1 is hot"
    assert onset.alert == Alert("WARN", "hardware:n1: gpu_throttled gpu/0", text)
    assert onset.history["telemetry/message"] == text
    assert end.alert is None and end.history["telemetry/level"] == "info"


# --- the open alerts of a run, in run.json


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(RunDir(tmp_path / "r"), "r", "sidecar1", ManualClock(), unsynced=set())
    yield run
    run.close()


def names(directory: Path) -> list[str]:
    return [alert["name"] for alert in read_json(directory / "run.json").get("alerts", [])]


def test_run_json_has_the_open_alerts_after_each_sync(run):
    """An onset adds one, a second onset changes its text, the end takes it away."""
    run.say(AlertChanged(name="a"))
    run.say(AlertChanged(name="b", text="one"))
    run.say(AlertChanged(name="b", text="two"))
    run.sync()
    both = names(run.place.path), read_json(run.place.path / "run.json")["alerts"][1]["text"]
    run.say(AlertChanged(name="a", is_active=False))
    run.sync()

    assert both == (["a", "b"], "two") and names(run.place.path) == ["b"]


def test_a_kill_between_the_journal_and_run_json_loses_no_open_alert(run):
    """The next sidecar reads it from the journal."""
    run.say(AlertChanged(name="a"))
    run.writer.sync()
    run.close()

    again = Run(run.place, "r", "sidecar2", ManualClock(), unsynced=set())
    found = [alert["name"] for alert in again.file.alerts or []]
    again.close()

    assert found == ["a"]


def test_a_new_sampler_knows_nothing_of_the_alerts_of_a_former_one():
    """And a sidecar takes over those of the one before it."""
    standing = after([], "hardware:n1", "s1", HOT)
    standing = after(standing, "sidecar", "s1", AlertChanged(name="disk_nearly_full"))

    left = without_former(standing, "hardware:n1", "s2")
    left = without_former(left, "sidecar", "s2")

    assert [alert["name"] for alert in left] == ["disk_nearly_full"]


def test_the_open_alerts_of_a_run_are_bounded():
    """Whatever a client sends: the first stay."""
    standing = []
    for number in range(STANDING_MAX + 10):
        event = AlertChanged(name="x" * 10, subject=str(number), text="\x1b[2J" + "y" * 10_000)
        standing = after(standing, "rank0", "s", event)

    assert len(standing) == STANDING_MAX
    assert all(len(alert["text"]) <= 300 and "\x1b" not in alert["text"] for alert in standing)
