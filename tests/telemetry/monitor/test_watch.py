"""Watch: what it says of journals, live and recorded, whole and damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from shared.events import AlertChanged, Gap, MessageLogged, MetricsLogged, RunFinished, RunStarted
from shared.ids import host_run_id
from telemetry.monitor.pieces import Room
from telemetry.monitor.run_panels import run_lines
from telemetry.monitor.snapshot import Snapshot
from telemetry.monitor.text import json_value, plain_text
from telemetry.monitor.watch import Watch, is_run_dir
from telemetry.views.follow import RunView
from tests.telemetry.monitor.runs import START_S, samples, training, write_rows, write_run_file


def seen(place: Path, *, is_run: bool = False) -> Snapshot:
    watch = Watch(place, is_run=is_run)
    while not watch.poll():
        pass
    snapshot = watch.snapshot()
    watch.close()
    return snapshot


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "r"
    path.mkdir(parents=True)
    return path


def test_a_run_is_shown_with_its_values_and_its_sinks(tmp_path, run_dir):
    write_rows(run_dir, training(100))
    write_run_file(run_dir, name="a name", config={"total_steps": 1000})
    (run_dir / "cursors").mkdir()
    (run_dir / "cursors" / "tensorboard.json").write_text('{"run_id": "r", "row": 41}')

    (run,) = seen(tmp_path).runs

    assert (run.name, run.step, run.total_steps) == ("a name", 100, 1000)
    assert run.loss == pytest.approx(9.0) and run.stage == "warmup"
    assert run.steps_per_second == pytest.approx(1.0) and run.tokens_per_second == 5000
    assert run.seconds_left == pytest.approx(900)
    assert [(sink.name, sink.rows) for sink in run.sinks] == [("tensorboard", 60)]
    assert [point.x for point in run.curve] == list(range(1, 101))


def test_what_is_journaled_meanwhile_is_seen(tmp_path, run_dir):
    write_rows(run_dir, training(5))
    write_run_file(run_dir)
    watch = Watch(tmp_path, is_run=False)
    watch.poll()
    assert watch.snapshot().runs[0].step == 5

    write_rows(run_dir, training(5, first=6)[1:], seq=6)
    watch.poll()

    assert watch.snapshot().runs[0].step == 10
    watch.close()


def test_a_machine_is_shown_with_the_newest_sample_of_all_runs(tmp_path):
    """Samples go into the runs at work, and into the host's own when there is none."""
    for name, start_s, count in ((host_run_id("h"), START_S, 10), ("r", START_S + 100, 20)):
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        write_rows(path, samples(count), "hardware:h", start_s=start_s)
        write_run_file(path, host="h")

    snapshot = seen(tmp_path)

    (host,) = snapshot.hosts
    assert host.name == "h" and host.values["cpu_percent"] == 19 and host.is_quiet
    assert len(host.points["cpu_percent"]) == 30
    assert [run.is_host for run in snapshot.runs] == [False, True]


def test_a_value_that_is_gone_is_not_shown_any_more(tmp_path, run_dir):
    """A GPU that fell off the bus has no last value that looks like a present one."""
    write_rows(
        run_dir, [*samples(3, **{"gpu/0/utilization_percent": 90.0}), *samples(1)], "hardware:h"
    )
    write_run_file(run_dir)

    (host,) = seen(tmp_path).hosts

    assert "gpu/0/utilization_percent" not in host.values


def test_alerts_begin_and_end(tmp_path, run_dir):
    events = [
        AlertChanged(name="gpu_lost", subject="gpu/0", severity="critical", text="GPU 0 is lost"),
        AlertChanged(name="oom_kill", subject="host", text="killed"),
        AlertChanged(name="oom_kill", subject="host", is_active=False, text="killed"),
    ]
    write_rows(run_dir, events, "hardware:h")
    write_run_file(run_dir)

    snapshot = seen(tmp_path)
    (run,) = snapshot.runs
    shown = plain_text(snapshot, Room(80))

    assert [(alert.name, alert.wall_s) for alert in run.alerts] == [("gpu_lost", START_S)]
    assert "! GPU 0 is lost" in shown and "over: killed" in shown and "! killed" not in shown


def test_a_new_start_of_a_source_ends_what_it_left_open(tmp_path, run_dir):
    """A sampler that was killed never said the end; the next one says anew what is so."""
    write_rows(run_dir, [AlertChanged(name="gpu_lost", subject="gpu/0")], "hardware:h", "s1")
    write_rows(run_dir, samples(1), "hardware:h", "s2")
    write_run_file(run_dir)

    assert seen(tmp_path).runs[0].alerts == ()


def test_gaps_restarts_and_endings_are_told(tmp_path, run_dir):
    write_rows(run_dir, [*training(5), Gap(count=7, reason="queue full")])
    later = [
        RunStarted(project="p", name="n", resumed_from_step=3),
        RunFinished(status="failed", exit_code=3),
    ]
    write_rows(run_dir, later, session="s2")
    write_run_file(run_dir, state="ended", status="failed", exit_code=3)

    (run,) = seen(tmp_path).runs

    assert run.gap_events == 7 and run.state == "failed" and not run.is_running
    said = [message.text for message in run.messages]
    assert said == ["started", "7 events are missing: queue full", "resumed from step 3",
                    "ended: failed, exit code 3"]  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_shown_as_what_it_is(tmp_path, run_dir, value):
    write_rows(
        run_dir, [*training(3), MetricsLogged(kind="train", step=4, values={"train/loss": value})]
    )
    write_run_file(run_dir)

    snapshot = seen(tmp_path)

    assert str(value) in plain_text(snapshot, Room(100))
    assert json.loads(json.dumps(json_value(snapshot), allow_nan=False))["runs"][0]["loss"] == str(
        value
    )


HOSTILE = "x\x1b[31m\r\u202ename"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_hostile_names_and_narrow_terminals_give_lines_that_fit(tmp_path, run_dir, width):
    write_rows(run_dir, [*training(50), MessageLogged(level="error", text=HOSTILE * 50)])
    write_rows(run_dir, samples(5, **{f"gpu/{HOSTILE}/utilization_percent": 1.0}), "hardware:h")
    write_run_file(run_dir, name=HOSTILE, project=HOSTILE)

    text = plain_text(seen(tmp_path), Room(width, is_ascii=width == 40))

    assert all(len(line) <= width for line in text.split("\n"))
    assert not set("\x1b\r\u202e") & set(text)


@pytest.mark.parametrize(
    "damage", ["run.json", "no run.json", "cursor", "segment", "no journal", "a file"]
)
def test_damaged_files_cost_what_is_in_them_and_no_more(tmp_path, run_dir, damage):
    other = tmp_path / "runs" / "other"
    other.mkdir()
    for path in (run_dir, other):
        write_rows(path, training(10))
        write_run_file(path)
    (run_dir / "cursors").mkdir()
    if damage == "cursor":
        (run_dir / "cursors" / "wandb.json").write_text('{"row": "many"}')
    elif damage == "run.json":
        (run_dir / "run.json").write_text("[" * 100_000)
    elif damage == "no run.json":
        (run_dir / "run.json").unlink()
    elif damage == "segment":
        (segment,) = (run_dir / "journal").glob("*.seg")
        segment.write_bytes(b"\0" * 100)
    elif damage == "no journal":
        for path in (run_dir / "journal").iterdir():
            path.unlink()
    else:
        (tmp_path / "runs" / "notes.txt").write_text("not a run")

    snapshot = seen(tmp_path)

    runs = {run.run_id: run for run in snapshot.runs}
    assert runs["other"].step == 10 and set(runs) == {"r", "other"}
    assert runs["r"].step == (None if damage in ("segment", "no journal") else 10)
    shown = [piece.text for line in run_lines(runs["r"], Room(120)) for piece in line]
    assert ("  damaged parts of its journal: 1" in shown) == (damage == "segment")
    (said,) = (run for run in json_value(snapshot)["runs"] if run["run_id"] == "r")
    assert said["damaged_parts"] == (damage == "segment")


def test_a_run_that_is_removed_meanwhile_is_gone_from_the_screen(tmp_path, run_dir):
    write_rows(run_dir, training(3))
    write_run_file(run_dir)
    watch = Watch(tmp_path, is_run=False)
    watch.poll()
    run_dir.rename(tmp_path / "elsewhere")
    watch._looked_s = 0.0

    watch.poll()

    assert watch.snapshot().runs == () and is_run_dir(tmp_path / "elsewhere")
    watch.close()


def test_a_finished_run_elsewhere_is_read_to_its_end(tmp_path, run_dir):
    write_rows(run_dir, training(10))
    (run_dir / "journal" / "durable").unlink()

    (run,) = seen(run_dir, is_run=True).runs

    assert run.step == 10


def test_reading_is_bounded_in_time_and_in_what_is_kept(tmp_path, run_dir):
    names = {f"n{i}": 1.0 for i in range(500)}
    write_rows(
        run_dir, [MetricsLogged(kind="train", step=i, values=dict(names)) for i in range(200)]
    )
    for start in range(20):
        values = {f"{start}-{i}": 1.0 for i in range(500)}
        write_rows(
            run_dir, [MetricsLogged(kind="train", step=1, values=values)], session=f"t{start}"
        )
    view = RunView(run_dir / "journal")

    polls = 1
    while not view.poll(0.0005):
        polls += 1

    assert polls > 1 and view.read_ratio == 1.0
    assert len(view.latest) <= 4096 and len(view.curves) <= 4096
    view.close()
