"""The processes of this machine: their CPU and memory, and the training process above them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from telemetry.hardware.proc import PAGE_BYTES, TICKS_PER_SECOND
from telemetry.monitor.processes import Processes
from telemetry.monitor.watch import Watch
from tests.fakes import ManualClock
from tests.telemetry.monitor.runs import training, write_rows, write_run_file

STAT = (Path(__file__).parents[2] / "data/proc/trainer.stat").read_text()


class Proc:
    """A /proc of a few processes, each as the recorded trainer was but for what a test says."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(
        self, pid: int, parent: int = 1, cpu_s: float = 0.0, start: int = 9, command: str = ""
    ) -> None:
        (self.root / str(pid)).mkdir(exist_ok=True)
        _, _, rest = STAT.rpartition(")")
        fields = rest.split()
        fields[1], fields[11], fields[12] = str(parent), str(int(cpu_s * TICKS_PER_SECOND)), "0"
        fields[17], fields[19], fields[21] = "4", str(start), "256"
        (self.root / f"{pid}/stat").write_text(f"{pid} (a (b) c) {' '.join(fields)}\n")
        (self.root / f"{pid}/cmdline").write_bytes(command.replace(" ", "\0").encode())


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def proc(tmp_path):
    return Proc(tmp_path)


@pytest.fixture
def processes(tmp_path, clock):
    return Processes(tmp_path, clock.monotonic_ns)


def test_cpu_is_what_was_used_since_the_last_reading(proc, processes, clock):
    """In cores; a process that has just come has none yet."""
    proc.put(10, cpu_s=100.0, command="python -m trainer")
    processes.read({})
    clock.advance(2)
    proc.put(10, cpu_s=103.0)
    proc.put(11, cpu_s=500.0)

    first, second = processes.read({})

    assert (first.pid, first.cpu_cores, first.rss_bytes) == (10, 1.5, 256 * PAGE_BYTES)
    assert first.command == "python -m trainer" and second.command == "[a (b) c]"
    assert second.cpu_cores is None


def test_another_process_with_the_same_pid_begins_anew(proc, processes, clock):
    """Its counters have nothing to do with those of the former one, nor has its command."""
    proc.put(10, cpu_s=1.0, command="old")
    processes.read({})
    clock.advance(1)
    proc.put(10, cpu_s=9.0, start=77, command="new")

    (line,) = processes.read({})

    assert (line.cpu_cores, line.command) == (None, "new")


def test_descendants_of_a_training_process_are_marked(proc, processes):
    """A loader worker of its worker too; a ring of parents ends."""
    for pid, parent in ((10, 1), (11, 10), (12, 11), (20, 21), (21, 20)):
        proc.put(pid, parent)

    of = {line.pid: line.of for line in processes.read({10: "rank0 of r"})}

    assert of == {10: "rank0 of r", 11: "rank0 of r", 12: "rank0 of r", 20: "", 21: ""}


def test_a_process_that_ends_meanwhile_and_a_damaged_file_cost_their_line_only(proc, processes):
    """A zombie has no command line; a stat that is cut is none."""
    proc.put(10)
    proc.put(11)
    (proc.root / "10/cmdline").unlink()
    (proc.root / "11/stat").write_text("11 (x) S 1 2")
    (proc.root / "12").mkdir()

    assert [line.pid for line in processes.read({})] == [10]


@pytest.mark.parametrize(
    "command", ["x --token hunter2", "x --api-key=hunter2", "a password=hunter2"]
)
def test_secrets_of_a_command_line_are_not_shown(proc, processes, command):
    """Nor in the JSON that a script keeps."""
    proc.put(10, command=command)

    (line,) = processes.read({})

    assert "hunter2" not in line.command and "(secret)" in line.command


def test_on_this_very_machine_it_finds_itself():
    """With the command line that it was started by."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    processes = Processes()
    processes.read({})
    lines = {line.pid: line for line in processes.read({os.getpid(): "me"})}
    child.kill()
    child.wait()

    assert "time.sleep(60)" in lines[child.pid].command or "[" in lines[child.pid].command
    assert lines[child.pid].of == lines[os.getpid()].of == "me"
    assert lines[os.getpid()].cpu_cores is not None and lines[os.getpid()].rss_bytes > 2**20


def test_the_ranks_of_runs_at_work_on_this_machine_are_known(tmp_path, monkeypatch):
    """Not those of another machine, and not of a run that has ended."""
    monkeypatch.setattr("socket.gethostname", lambda: "node1")
    monkeypatch.setattr("telemetry.monitor.watch.is_held", lambda place: True)
    ranks = {"rank0": ["node1", 10, 5], "rank1": ["node2", 11, 5]}
    for run_id, state in (("a", "running"), ("b", "ended")):
        run_dir = tmp_path / "runs" / run_id
        run_dir.mkdir(parents=True)
        write_rows(run_dir, training(2))
        write_run_file(run_dir, state=state, processes=ranks)
    watch = Watch(tmp_path, is_run=False)
    watch.poll()

    assert watch.snapshot().trainers == {10: "rank0 of a"}
    watch.close()
