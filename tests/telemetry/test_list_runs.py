"""`ls`: the recorded runs on a terminal, and for scripts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.events import MetricsLogged
from telemetry.cli import main
from telemetry.commands.list_runs import Choice, ordered, table
from telemetry.datadir import DataDir
from telemetry.journal.layout import MARK_NAME, segments
from telemetry.views.listing import ListedRun, listed_run
from telemetry.views.run_state import SILENT_S
from telemetry.views.tail import read_tail
from tests.telemetry.monitor.runs import START_S, samples, training, write_rows, write_run_file
from tests.telemetry.sidecar_process import clean_env


def make_run(data_dir: Path, run_id: str, steps: int = 10, **fields: object) -> Path:
    run_dir = data_dir / "runs" / run_id
    write_rows(run_dir, training(steps))
    told = {"state": "ended", "status": "finished", "endings": 1, "host": "node1"}
    write_run_file(run_dir, **{**told, "started_wall_ns": START_S * 10**9, **fields})
    return run_dir


def ls(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["ls", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def objects(capsys: pytest.CaptureFixture[str], *args: object) -> list[dict[str, object]]:
    code, out, _ = ls(capsys, *args, "--json")
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def test_a_run_is_told_with_its_last_values_its_size_and_its_time(tmp_path, capsys) -> None:
    """From run.json and the end of the journal."""
    run_dir = make_run(tmp_path, "a", 25, tags=["x", "y"], name="n", group="g")

    (run,) = objects(capsys, tmp_path)

    size = sum(path.stat().st_blocks * 512 for path in run_dir.rglob("*") if path.is_file())
    assert run == {
        "run": "a", "path": str(run_dir), "name": "n", "project": "p", "state": "finished",
        "exit_code": None, "tags": ["x", "y"], "group": "g", "host": "node1",
        "started_s": START_S, "last_s": START_S + 25, "seconds": 25, "rows": 26, "step": 25,
        "loss": 9.75, "bytes": size,
    }  # fmt: skip


def test_runs_are_sorted_and_those_without_the_value_come_last(tmp_path, capsys) -> None:
    """The least loss first, the newest and the largest first."""
    make_run(tmp_path, "long", 50, started_wall_ns=3)
    make_run(tmp_path, "short", 5, started_wall_ns=2)
    write_rows(tmp_path / "runs" / "hw", samples(3))
    write_run_file(tmp_path / "runs" / "hw", state="ended", started_wall_ns=9)

    def order(*args: str) -> list[object]:
        return [run["run"] for run in objects(capsys, tmp_path, *args)]

    assert order() == ["hw", "long", "short"]
    assert order("--sort", "loss") == ["long", "short", "hw"]
    assert order("--sort", "loss", "--reverse") == ["short", "long", "hw"]
    assert order("--sort", "step") == ["long", "short", "hw"]
    assert order("--sort", "run") == ["hw", "long", "short"]


def test_a_loss_that_is_no_number_is_no_best_loss() -> None:
    """NaN is neither less nor greater than anything."""
    runs = [
        ListedRun(
            run=str(at), path="", name=None, project=None, state="ended", exit_code=None,
            tags=[], group=None, host=None, started_s=None, last_s=None, seconds=None, rows=0,
            step=None, loss=loss, bytes=0,
        )
        for at, loss in enumerate((2.0, float("nan"), 1.0, None, float("inf")))
    ]  # fmt: skip

    assert [run.run for run in ordered(runs, Choice(sort="loss"))] == ["2", "0", "4", "1", "3"]


def test_runs_are_filtered(tmp_path, capsys) -> None:
    """By state, project, tags and a glob over id and name."""
    make_run(tmp_path, "a-1", 3, tags=["x"], name="base lr")
    make_run(tmp_path, "a-2", 3, tags=["x", "y"], project="q", status="failed")
    make_run(tmp_path, "b-1", 3)

    def found(*args: str) -> set[object]:
        return {run["run"] for run in objects(capsys, tmp_path, *args)}

    assert found("--state", "failed") == {"a-2"}
    assert found("--state", "failed", "--state", "finished") == {"a-1", "a-2", "b-1"}
    assert found("--project", "q") == {"a-2"}
    assert found("--tag", "x") == {"a-1", "a-2"} and found("--tag", "x", "--tag", "y") == {"a-2"}
    assert found("--match", "a-*") == {"a-1", "a-2"} and found("--match", "*lr") == {"a-1"}


def test_a_run_that_goes_on_is_running_only_while_a_sidecar_is_there(
    tmp_path, capsys, monkeypatch
) -> None:
    """Of what a dead sidecar left, nobody can say that it runs; nor of a trainer that is silent."""
    make_run(tmp_path, "a", 3, state="running", status=None)
    last_s = objects(capsys, tmp_path)[0]["last_s"]
    assert isinstance(last_s, float)

    def state(seconds_later: float) -> object:
        monkeypatch.setattr("time.time", lambda: last_s + seconds_later)
        return objects(capsys, tmp_path)[0]["state"]

    with contextlib.closing(DataDir(tmp_path)):
        assert (state(SILENT_S), state(SILENT_S + 1)) == ("running", "silent")
    assert state(0) == "silent"


@pytest.mark.parametrize("width", [80, 100, 200, 40])
def test_lines_fit_the_terminal_and_control_nothing(tmp_path, width) -> None:
    """Ids are whole; names from a producer are cut, and escaped."""
    hostile = "\x1b]0;owned\x07\u202e" * 10
    run_id = "20261123-183929-9cb107f9"
    path = make_run(tmp_path, run_id, 3, name=hostile, tags=[hostile], host=hostile)

    lines = table([listed_run(path, is_attended=False)] * 2, width)

    assert max(map(len, lines)) <= max(width, len(run_id) + 26)
    assert all(line.isprintable() for line in lines) and lines[1].startswith(run_id)
    assert ("host" in lines[0]) == (width > 80) and "loss" in lines[0]
    assert width < 80 or ("9.97" in lines[1] and "finished" in lines[1] and "size" in lines[0])


def test_in_a_pipe_that_closes_it_ends_quietly(tmp_path) -> None:
    """As `ls | head -1` does."""
    for n in range(300):
        make_run(tmp_path, f"run-{n:04}", 1)
    command = f"set -o pipefail; {sys.executable} -m telemetry ls {tmp_path} | head -1"

    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=clean_env(), timeout=60
    )

    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("run ")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "there is no"),
        (lambda path: path.mkdir(), "is not a data directory: it has no runs/"),
        (lambda path: path.write_text("x"), "is a file"),
    ],
)
def test_what_is_no_data_directory_is_one_clear_line(tmp_path, capsys, make, text) -> None:
    """Exit code 2, as of the other commands."""
    make(tmp_path / "d")

    code, out, err = ls(capsys, tmp_path / "d")

    assert code == 2 and out == "" and text in err and err.count("\n") == 1


def test_a_data_directory_without_runs_is_no_mistake(tmp_path, capsys) -> None:
    """Nothing was recorded yet."""
    (tmp_path / "runs").mkdir()

    code, out, err = ls(capsys, tmp_path)

    assert code == 0 and out == "" and "it has no runs yet" in err


def test_damaged_and_half_copied_runs_are_listed_with_what_is_known(tmp_path, capsys) -> None:
    """None of them hides the others."""
    make_run(tmp_path, "good", 3)
    make_run(tmp_path, "bad-json", 3).joinpath("run.json").write_text("{")
    torn = make_run(tmp_path, "torn", 30)
    (segment,) = segments(torn / "journal")
    os.truncate(segment.path, segment.path.stat().st_size - 40)
    headless = make_run(tmp_path, "headless", 3)
    (segment,) = segments(headless / "journal")
    segment.path.write_bytes(b"\0" * 64 + segment.path.read_bytes()[64:])
    empty = make_run(tmp_path, "empty", 3)
    shutil.rmtree(empty / "journal")
    (empty / "journal").mkdir()
    (tmp_path / "runs" / "notes; rm -rf").mkdir()

    runs = {run["run"]: run for run in objects(capsys, tmp_path)}

    assert runs.keys() == {"good", "bad-json", "torn", "headless", "empty"}
    assert runs["bad-json"]["step"] == 3 and runs["bad-json"]["name"] is None
    assert runs["empty"]["step"] is None and runs["empty"]["rows"] == 0


def test_the_tail_is_found_behind_much_hardware_and_behind_the_mark_nothing(tmp_path) -> None:
    """A second of hardware may be larger than the first tail; what is not durable is not read."""
    run_dir = tmp_path / "runs" / "r"
    write_rows(run_dir, training(5))
    wide = {f"gpu/{n}/power_watts": float(n) for n in range(100)}
    write_rows(run_dir, samples(30, **wide), "hardware:node1", "h")
    mark = (run_dir / "journal" / MARK_NAME).read_bytes()
    write_rows(run_dir, [MetricsLogged(kind="train", step=6, values={"train/loss": 1.0})], seq=6)

    tail = read_tail(run_dir)
    (run_dir / "journal" / MARK_NAME).write_bytes(mark)
    before = read_tail(run_dir)

    assert (tail.step, tail.loss) == (6, 1.0)
    assert (before.step, before.loss, before.rows) == (5, 9.95, 36)


def test_a_thousand_runs_are_listed_in_a_second_or_two(tmp_path, capsys) -> None:
    """About 0.6 ms of processor time a run: 10,000 take six seconds."""
    template = make_run(tmp_path, "run-0000", 200)
    for n in range(1, 1000):
        shutil.copytree(template, tmp_path / "runs" / f"run-{n:04}")
    began_s = time.process_time()

    runs = objects(capsys, tmp_path)

    assert len(runs) == 1000 and time.process_time() - began_s < 3
