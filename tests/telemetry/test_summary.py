"""The summary at the end: commands on one line each, right where they are read."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json
from telemetry.summary import Commands, launched_runs, print_summary


def a_run(data_dir: Path, run_id: str = "r", **info: object) -> Path:
    run_dir = data_dir / "runs" / run_id
    JournalWriter(run_dir / "journal").close()
    (run_dir / "tensorboard").mkdir()
    (run_dir / "wandb" / "offline-run-1-r").mkdir(parents=True)
    write_json(run_dir / "run.json", {"run_id": run_id, "name": "n", "state": "ended", **info})
    return run_dir


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_each_command_is_one_line_that_a_shell_takes(tmp_path, capsys, monkeypatch):
    """However long the path, and with a space in it."""
    monkeypatch.setenv("COLUMNS", "20")
    place = tmp_path / ("long and deep " * 10)
    run_dir = a_run(place, status="failed", exit_code=3)

    print_summary(place / "runs", ["r"], [("r", "wandb"), ("other", "tensorboard")])

    lines = told(capsys)
    assert len(lines) == 6 and "0 events, failed, exit code 3" in lines[0]
    words = [shlex.split(line.split(":", 2)[2]) for line in lines[1:]]
    assert words[0][-2:] == ["--logdir", str(run_dir / "tensorboard")]
    assert words[1][-2:] == ["sync", str(run_dir / "wandb/offline-run-1-r")]
    assert words[4][-3:] == ["sink", "wandb", str(run_dir)]


def test_below_the_working_directory_paths_are_short(tmp_path, capsys, monkeypatch):
    """They are pasted where the command was given."""
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path)

    print_summary(tmp_path / "runs", ["r"], [])

    assert any(line.endswith("--logdir runs/r/tensorboard") for line in told(capsys))


def test_in_a_container_commands_are_the_hosts(tmp_path, capsys):
    """Paths are the container's there, and a program is run in one."""
    a_run(tmp_path)
    form = "docker compose run --rm --entrypoint {program} telemetry {arguments}"

    print_summary(tmp_path / "runs", ["r"], [], Commands(form, "http://localhost:6006"))

    lines = told(capsys)
    assert lines[1].endswith("look:         http://localhost:6006")
    assert f"docker compose run --rm --entrypoint wandb telemetry sync {tmp_path}" in lines[2]
    assert f"--entrypoint python telemetry -m telemetry inspect {tmp_path}" in lines[3]


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", ["x"], None, {"a": 1}])
def test_a_name_of_any_kind_is_part_of_one_line(tmp_path, capsys, name):
    """What a producer called its run acts on nothing."""
    a_run(tmp_path, name=name, status=name)

    print_summary(tmp_path / "runs", ["r"], [])

    lines = told(capsys)
    assert len(lines) == 5 and all(line.isprintable() for line in lines)


def test_only_the_runs_of_one_launch_are_its(tmp_path):
    """A second command in one data directory shows none of the first one's."""
    a_run(tmp_path, "first", launch_id="a")
    a_run(tmp_path, "second", launch_id="b")
    a_run(tmp_path, "third")

    assert list(launched_runs(tmp_path / "runs", "b")) == ["second"]
    assert launched_runs(tmp_path / "gone", "b") == {}
