"""The whole path: a real training run, its sidecar, the journal, and what every sink shows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shared.events import Gap, MetricsLogged, RunFinished, RunStarted
from telemetry.commands.inspect import read_contents
from telemetry.journal.rows import Row
from telemetry.json_files import read_json
from telemetry.sinks.wandb.wandb_file import exit_code
from tests.recorded import rows_of
from tests.telemetry.sidecar_process import clean_env
from tests.telemetry.waiting import wait_until
from tests.wandb_contents import history_rows

STEPS = 24
TRAINER = (
    *("--model_size", "tiny", "--dataset", "sample", "--max_length", "32", "--batch_size", "2"),
    *("--max_steps", str(STEPS), "--log_interval", "1", "--eval_interval", "12"),
    *("--eval_batches", "2", "--quant_interval", "6", "--wandb_mode", "offline"),
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def recorded() -> Iterator[Path]:
    """The directory of one training run that was recorded from start to end."""
    with tempfile.TemporaryDirectory(prefix="tm-", dir="/tmp") as name:
        place = Path(name)
        command = [sys.executable, "-m", "telemetry", "run", "--data-dir", str(place / "data")]
        command += ["--", *trainer(place)]
        done = subprocess.run(command, env=own_env(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "wandb sync" in done.stderr and "tensorboard --logdir" in done.stderr
        (run_dir,) = (place / "data" / "runs").iterdir()
        yield run_dir


def own_env(**extra: str) -> dict[str, str]:
    return clean_env(OMP_NUM_THREADS="1", **extra)


def trainer(place: Path) -> list[str]:
    paths = ["--output_dir", str(place / "out"), "--cache_dir", str(place / "cache")]
    return [sys.executable, "-m", "trainer", *TRAINER, *paths]


def metrics_of(rows: list[Row], kind: str) -> list[tuple[Row, MetricsLogged]]:
    events = [(row, row.envelope.event()) for row in rows]
    return [(r, e) for r, e in events if isinstance(e, MetricsLogged) and e.kind == kind]


def scalars_of(out_dir: Path) -> dict[tuple[str, str], list[tuple[int, float, float]]]:
    """(subdirectory, tag) -> (step, value, wall time) of every point TensorBoard has."""
    from tensorboard.backend.event_processing.event_accumulator import (
        TENSORS,
        EventAccumulator,
    )
    from tensorboard.util.tensor_util import make_ndarray

    found: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for directory in sorted((out_dir / "tensorboard").iterdir()):
        accumulator = EventAccumulator(str(directory), size_guidance={TENSORS: 0, "scalars": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            found[directory.name, tag] = [
                (e.step, e.value, e.wall_time) for e in accumulator.Scalars(tag)
            ]
        for tag in accumulator.Tags()["tensors"]:
            for event in accumulator.Tensors(tag):
                array = make_ndarray(event.tensor_proto)
                if array.dtype.kind == "f" and array.ndim == 0:
                    point = (event.step, float(array), event.wall_time)
                    found.setdefault((directory.name, tag), []).append(point)
    return found


def wandb_rows(out_dir: Path) -> list[dict[str, Any]]:
    files = sorted((out_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    return [row for path in files for row in history_rows(path)]


def test_the_journal_holds_the_whole_run(recorded: Path) -> None:
    """Every step, every validation, the start with its full config, and the end."""
    rows = rows_of(recorded)

    assert [row.row for row in rows] == list(range(len(rows)))
    assert [e.step for _, e in metrics_of(rows, "train")] == list(range(1, STEPS + 1))
    assert [e.step for _, e in metrics_of(rows, "val")] == [12, 24]
    assert [e.step for _, e in metrics_of(rows, "quant")] == [6, 12, 18, 24]
    assert len(metrics_of(rows, "hardware")) > 0
    events = [row.envelope.event() for row in rows]
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    (finished,) = [event for event in events if isinstance(event, RunFinished)]
    assert started.config["model_size"] == "tiny"
    assert finished.status == "finished" and finished.exit_code == 0
    info = read_json(recorded / "run.json")
    assert info is not None and info["state"] == "ended"
    assert info["config"]["total_parameters"] > 1_000_000


def test_the_names_that_users_chart_are_all_there(recorded: Path) -> None:
    """Dashboards of the original pipeline go on working."""
    rows = rows_of(recorded)
    train = metrics_of(rows, "train")[-1][1].values
    val = metrics_of(rows, "val")[-1][1].values
    hardware = metrics_of(rows, "hardware")[-1][1].values

    assert {
        "train/loss",
        "train/learning_rate",
        "train/qdrop_probability",
        "train/training_stage",
        "train/epoch",
        "train/global_step",
        "train/grad_norm",
    } <= set(train)
    assert train["train/training_stage"] == "full_ternary"
    assert {"val/loss", "val/perplexity"} <= set(val)
    assert {"cpu_percent", "memory_percent"} <= set(hardware)


def test_tensorboard_shows_each_number_with_its_step_and_time(recorded: Path) -> None:
    """What TensorBoard reads back is what the trainer said, to the last point."""
    expected: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    rows = rows_of(recorded)
    for kind in ("train", "val", "quant"):
        for row, event in metrics_of(rows, kind):
            for name, value in event.values.items():
                # Every event has its step, and the first of a step shows it.
                if not isinstance(value, str) and name != "train/global_step":
                    point = (event.step or 0, float(value), row.envelope.wall_ns / 1e9)
                    expected.setdefault(("rank0", name), []).append(point)

    shown = scalars_of(recorded)

    for key, points in expected.items():
        assert [(s, w) for s, _, w in shown[key]] == [(s, w) for s, _, w in points]
        assert [v for _, v, _ in shown[key]] == pytest.approx([v for _, v, _ in points], rel=1e-6)
    steps = [(step, value) for step, value, _ in shown["rank0", "train/global_step"]]
    assert steps == [(step, float(step)) for step in range(1, STEPS + 1)]
    cpu = [e for _, e in metrics_of(rows, "hardware") if "cpu_percent" in e.values]
    assert len(shown["hardware", "~hw/cpu_percent"]) == len(cpu)


def test_the_wandb_file_holds_each_row_once(recorded: Path) -> None:
    """Row numbers are wandb steps; values and times are the trainer's own."""
    rows = rows_of(recorded)

    shown = {row["_step"]: row for row in wandb_rows(recorded)}

    assert len(shown) == len(wandb_rows(recorded))
    for kind in ("train", "val", "quant"):
        for row, event in metrics_of(rows, kind):
            said = shown[row.row]
            assert said["_timestamp"] == pytest.approx(row.envelope.wall_ns / 1e9, abs=1e-5)
            assert {name: said[name] for name in event.values} == event.values
    (file,) = (recorded / "wandb").glob("offline-run-*/run-*.wandb")
    assert exit_code(file) == 0


def test_a_replay_gives_the_same_as_the_live_run_and_twice_is_as_once(
    recorded: Path, tmp_path: Path
) -> None:
    """Same rows, values, steps and times in fresh files; a second replay adds nothing."""
    for _ in range(2):
        for sink in ("tensorboard", "wandb"):
            command = [sys.executable, "-m", "telemetry", "replay", str(recorded), "--to", sink]
            command += ["--out", str(tmp_path)]
            subprocess.run(command, env=own_env(), check=True, capture_output=True)

    replayed = tmp_path / recorded.name
    assert scalars_of(replayed) == scalars_of(recorded)
    without = ("_runtime",)  # wandb always puts the time of processing there
    assert [cut(row, without) for row in wandb_rows(replayed)] == [
        cut(row, without) for row in wandb_rows(recorded)
    ]


def cut(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    # As text: NaN is not equal to itself.
    return json.dumps({k: v for k, v in row.items() if k not in names}, sort_keys=True)


def test_killing_the_sidecar_in_mid_run_neither_stalls_training_nor_loses_a_row(
    place: Path,
) -> None:
    """Row 1 of the fault catalogue, with a real trainer: kill -9, three seconds of
    nothing, a new sidecar; the trainer went on meanwhile, and all of it arrives."""
    data_dir = place / "data"
    sidecar = start_sidecar(data_dir)
    environ = own_env(TELEMETRY_ENDPOINT=f"ipc://{data_dir}/telemetry.sock")
    process = subprocess.Popen(trainer(place), env=environ, stderr=subprocess.PIPE, text=True)
    printed = follow(process)
    try:
        wait_until(lambda: any(line.startswith("step 5/") for line in printed), 120)
        sidecar.send_signal(signal.SIGKILL)
        sidecar.wait()
        killed_ns = time.time_ns()
        said = len(printed)
        wait_until(lambda: sum(line.startswith("step ") for line in printed[said:]) >= 3, 120)
        sidecar, back_ns = start_sidecar(data_dir), time.time_ns()
        assert process.wait(240) == 0, printed
        (run_dir,) = (data_dir / "runs").glob("2*")
        wait_until(lambda: (read_json(run_dir / "run.json") or {}).get("state") == "ended", 60)
    finally:
        process.kill()
        process.wait()
        sidecar.terminate()
        assert sidecar.wait(60) == 0

    rows = rows_of(run_dir)
    train = metrics_of(rows, "train")
    meanwhile = [row for row, _ in train if killed_ns < row.envelope.wall_ns < back_ns]
    assert len(meanwhile) >= 3, "nothing was in flight: the kill proved nothing"
    assert [event.step for _, event in train] == list(range(1, STEPS + 1))
    assert [event.step for _, event in metrics_of(rows, "val")] == [12, 24]
    assert not any(isinstance(row.envelope.event(), Gap) for row in rows)
    assert read_contents(run_dir / "journal").damage == []
    loss = scalars_of(run_dir)["rank0", "train/loss"]
    assert [step for step, _, _ in loss] == list(range(1, STEPS + 1))
    steps = [row["_step"] for row in wandb_rows(run_dir)]
    assert len(steps) == len(set(steps)) and {row.row for row, _ in train} <= set(steps)


def start_sidecar(data_dir: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "telemetry", "serve", "--data-dir", str(data_dir)]
    command += ["--http", "off", "--page", "off", "--no-host-run"]
    return subprocess.Popen(command, env=own_env())


def follow(process: subprocess.Popen[str]) -> list[str]:
    """The lines a process has written to its stderr so far, growing."""
    lines: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                lines.append(line)

    threading.Thread(target=read, daemon=True).start()
    return lines
