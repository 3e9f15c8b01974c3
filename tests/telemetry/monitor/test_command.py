"""The command: what it prints, and what it leaves behind, as a user starts it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest

from tests.telemetry.monitor.runs import training, write_rows, write_run_file
from tests.telemetry.sidecar_process import clean_env

MONITOR = (sys.executable, "-m", "telemetry", "monitor")


def processes_with(path: Path) -> list[psutil.Process]:
    """Processes that have a path in their command line."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if str(path) in str(process.info["cmdline"])]


def ran(*flags: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [*MONITOR, *map(str, flags)]
    return subprocess.run(
        command, env=clean_env() | env, capture_output=True, text=True, timeout=60, check=False
    )


def test_once_shows_the_machine_and_records_it(tmp_path):
    """And leaves no process behind."""
    done = ran("--data-dir", tmp_path / "data", "--once", COLUMNS="80")

    assert done.returncode == 0
    assert "cpu " in done.stdout and "memory" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.split("\n"))
    (run_dir,) = (tmp_path / "data" / "runs").iterdir()
    info = json.loads((run_dir / "run.json").read_text())
    assert info["state"] == "ended" and info["status"] == "finished"
    assert processes_with(tmp_path) == []


def test_json_is_an_object_a_line_until_it_is_ended(tmp_path):
    command = [*MONITOR, "--data-dir", str(tmp_path / "data"), "--json", "--interval", "0.3"]
    with subprocess.Popen(command, env=clean_env(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        code = process.wait(40)

    assert code == 0
    assert all("cpu_percent" in each["hosts"][0]["values"] for each in found)
    assert found[0]["sidecar_pid"] and found[2]["wall_s"] > found[0]["wall_s"]


@pytest.mark.parametrize("is_run", [False, True])
def test_attached_it_only_looks(tmp_path, is_run):
    """Nothing is written where it looks, and no sidecar is started."""
    run_dir = tmp_path / "runs" / "r"
    run_dir.mkdir(parents=True)
    write_rows(run_dir, training(20))
    write_run_file(run_dir, state="ended", status="finished")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    done = ran("--attach", run_dir if is_run else tmp_path, "--once", "--json")

    (run,) = json.loads(done.stdout)["runs"]
    assert done.returncode == 0 and run["step"] == 20 and run["state"] == "finished"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--attach", "nothing-here"), "neither a data directory nor the directory of a run"),
        (("--interval", "0"), "--interval is 0"),
        (("--interval", "nan"), "--interval is nan"),
        (("--sample-hz", "1000"), "sample_hz"),
    ],
)
def test_bad_input_gets_one_clear_line(tmp_path, flags, words):
    done = ran(*flags, "--once")

    assert done.returncode == 2 and len(done.stderr.strip().split("\n")) == 1
    assert words in done.stderr.replace("--sample-hz", "sample_hz")


def test_without_a_terminal_there_are_lines(tmp_path):
    command = [*MONITOR, "--data-dir", str(tmp_path / "data"), "--interval", "0.3"]
    with subprocess.Popen(
        command, env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        said = process.stderr.readline()
        first = process.stdout.readline()
        process.terminate()
        process.communicate(timeout=40)

    assert "lines are printed instead of a screen" in said and "telemetry monitor" in first


@pytest.mark.parametrize("size", [(24, 80), (50, 200), (8, 20)])
def test_on_a_terminal_there_is_a_screen_and_q_ends_it(tmp_path, size):
    """The terminal is as it was, the sidecar has drained, its log is in a file."""
    pid, fd = pty.fork()
    if pid == 0:
        termios.tcsetwinsize(0, size)
        env = clean_env(TERM="xterm-256color")
        sizes = ("COLUMNS", "LINES")  # in the way of the terminal's own
        env = {name: value for name, value in env.items() if name not in sizes}
        os.execve(sys.executable, [*MONITOR, "--data-dir", str(tmp_path / "data")], env)
    wanted = f"{size[1]}x{size[0]}: needs 40x10" if size[1] < 40 else "sampler started"
    shown = _until(fd, wanted)
    os.write(fd, b"q")
    after = _until(fd, "the sidecar's log is")
    _, status = os.waitpid(pid, 0)
    os.close(fd)

    assert wanted in shown and os.waitstatus_to_exitcode(status) == 0
    assert "telemetry inspect" in after or size[1] < 40
    assert "listening on" in (tmp_path / "data" / "monitor.log").read_text()
    assert processes_with(tmp_path) == []


def _until(fd: int, words: str, timeout_s: float = 40.0) -> str:
    text, deadline_s = "", time.monotonic() + timeout_s
    while words not in text and time.monotonic() < deadline_s:
        try:
            text += os.read(fd, 65_536).decode(errors="replace")
        except OSError:
            break
    assert words in text, text[-2000:]
    return text


def test_with_a_sidecar_at_work_it_shows_that_one(tmp_path):
    """It starts no second one, and leaves the first at work."""
    serve = [sys.executable, "-m", "telemetry", "serve", "--data-dir", str(tmp_path), "--http=off"]
    serve.append("--page=off")
    with subprocess.Popen(serve, env=clean_env(), stderr=subprocess.PIPE, text=True) as sidecar:
        assert sidecar.stderr is not None and "listening" in sidecar.stderr.readline()

        done = ran("--data-dir", tmp_path, "--once", "--json")

        is_at_work = sidecar.poll() is None
        sidecar.terminate()
        sidecar.communicate(timeout=40)

    assert done.returncode == 0 and is_at_work
    assert json.loads(done.stdout)["sidecar_pid"] == str(sidecar.pid)


def test_a_data_directory_that_can_not_be_written_is_told(tmp_path: Path):
    (tmp_path / "data").write_text("a file")

    done = ran("--data-dir", tmp_path / "data", "--once")

    assert done.returncode != 0 and "there is a file in its place" in done.stderr
