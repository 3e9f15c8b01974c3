"""The ends of trainers that are no children of the sidecar: code or signal, and OOM kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from shared.events import AlertChanged, MessageLogged, RunFinished
from telemetry.commands.inspect import inspect
from telemetry.exits import Ending, Kills
from telemetry.ingest.death import events_of_ending, sentence_of
from telemetry.run_dir import Process
from telemetry.supervise import process_ends
from telemetry.supervise.process_ends import HELD_MAX, ProcessEnds
from tests.fakes import ManualClock
from tests.telemetry.sidecar_process import clean_env
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import Producer, Station, metric, read_rows, started

NO_KILLS = Kills(0, 0)
HAS_STATUS = tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 15)
needs_status = pytest.mark.skipif(not HAS_STATUS, reason="the kernel tells it since Linux 6.15")


class Foreign:
    """A process whose parent is a shell: it is no child of this one, and is reaped there."""

    def __init__(self, script: str) -> None:
        command = ["sh", "-c", f"( {script} ) & echo $!; wait; exec sleep 60"]
        self.shell = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.pid = int(self.shell.stdout.readline())
        self.start_ns = int(psutil.Process(self.pid).create_time() * 1e9)
        self.process = Process("node1", self.pid, self.start_ns)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)
        wait_until(lambda: not psutil.pid_exists(self.pid))

    def close(self) -> None:
        for pid in (self.pid, self.shell.pid):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        self.shell.communicate()


@pytest.fixture
def foreign():
    made: list[Foreign] = []

    def make(script: str = "exec sleep 60") -> Foreign:
        made.append(Foreign(script))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def ends():
    with ProcessEnds("node1", lambda: NO_KILLS) as found:
        yield found


def run_of(process: Process, run_id: str = "r"):
    return SimpleNamespace(run_id=run_id, is_ended=False, processes={"rank0": process})


@needs_status
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, 137), (signal.SIGSEGV, 139), (signal.SIGTERM, 143)]
)
def test_the_signal_of_a_process_that_is_gone_is_known(foreign, ends, number, code):
    """Though it was another's child, and was reaped long ago."""
    trainer = foreign()
    run = run_of(trainer.process)
    ends.look([run])

    trainer.kill(number)

    assert ends.ending_of(run) == Ending(trainer.pid, False, code, NO_KILLS)


@needs_status
@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_of_a_process_that_is_gone_is_known(foreign, ends, code):
    """Also that of one that went well and said nothing."""
    trainer = foreign(f"read line < /proc/self/fd/0; sleep 0.5; exit {code}")
    run = run_of(trainer.process)
    ends.look([run])

    wait_until(lambda: not psutil.pid_exists(trainer.pid))

    assert ends.ending_of(run).exit_code == code


def test_a_kernel_that_tells_no_status_of_a_stranger_still_tells_that_it_is_gone(
    foreign, ends, monkeypatch
):
    """Before Linux 6.15."""
    monkeypatch.setattr(process_ends, "_GET_INFO", 0)
    trainer = foreign()
    run = run_of(trainer.process)
    ends.look([run])

    trainer.kill()

    assert ends.ending_of(run) == Ending(trainer.pid, False, None, NO_KILLS)


def test_a_process_whose_parent_has_not_taken_note_is_read_from_proc(ends, monkeypatch):
    """A zombie has its status there, on every kernel."""
    monkeypatch.setattr(process_ends, "_GET_INFO", 0)
    child = subprocess.Popen(["sleep", "60"])
    start_ns = int(psutil.Process(child.pid).create_time() * 1e9)
    run = run_of(Process("node1", child.pid, start_ns))
    ends.look([run])

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    found = ends.ending_of(run)
    child.wait()

    assert found.exit_code == 137


def test_a_process_that_is_there_is_alive_and_a_frozen_one_too(foreign, ends):
    """It may hang: nobody says that it died, and nobody waits for it."""
    trainer = foreign()
    run = run_of(trainer.process)
    ends.look([run])
    os.kill(trainer.pid, signal.SIGSTOP)

    began_s = time.monotonic()
    found = ends.ending_of(run)

    assert found.is_alive and time.monotonic() - began_s < 0.3
    (said,) = events_of_ending(found)
    assert isinstance(said, MessageLogged) and "is still there" in said.text


def test_another_process_of_the_same_pid_is_not_the_trainer(foreign, ends):
    """A pid alone is never believed; nor is one of another machine."""
    trainer = foreign()
    older = Process("node1", trainer.pid, trainer.start_ns - 60 * 10**9)
    elsewhere = Process("node2", trainer.pid, trainer.start_ns)

    for process in (older, elsewhere):
        run = run_of(process)
        ends.look([run])
        assert ends.ending_of(run) is None


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_as_many_processes_are_held_as_there_may_be_and_let_go_with_their_runs(foreign, ends):
    """Descriptors are few."""
    trainer = foreign()
    before = descriptors()
    runs = [run_of(trainer.process, f"r{n}") for n in range(HELD_MAX + 5)]

    ends.look(runs)
    held = descriptors() - before
    ends.look([])

    assert (held, descriptors()) == (HELD_MAX, before)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (Ending(7, False, 137, Kills(1, 1)), "ended by SIGKILL; meanwhile the kernel killed 1"),
        (Ending(7, False, 137, Kills(0, 0)), "not by the kernel for want of memory"),
        (Ending(7, False, 137, Kills(None, 2)), "killed 2 processes of this machine for memory"),
        (Ending(7, False, 3, Kills(0, 0)), "exit code 3"),
        (Ending(7, False, None, Kills(2, 2)), "killed 2 processes of this container"),
        (Ending(7, False, None, NO_KILLS), "process 7 is gone, and the kernel does not tell"),
    ],
)
def test_what_is_known_is_one_sentence(ending, expected):
    """With the kernel's kills since the run began."""
    assert expected in sentence_of(ending)
    assert "\n" not in sentence_of(ending)


def test_kills_are_counted_since_the_run_was_first_seen(foreign):
    """Those of a former run are not its own."""
    counts = [Kills(5, 7)]
    trainer = foreign()
    with ProcessEnds("node1", lambda: counts[-1]) as ends:
        run = run_of(trainer.process)
        ends.look([run])
        counts.append(Kills(6, None))

        assert ends.ending_of(run).kills == Kills(1, None)


@needs_status
def test_a_silent_run_whose_process_was_killed_says_so_also_after_a_restart(foreign, tmp_path):
    """By a sidecar that is the parent of nothing, and was itself killed meanwhile."""
    trainer = foreign()
    station = Station(tmp_path, ManualClock(), ends=lambda: ProcessEnds("node1", lambda: NO_KILLS))
    producer = Producer(station)
    producer.hello()
    place = {"host": "node1", "pid": trainer.pid, "process_start_ns": trainer.start_ns}
    producer.emit(started(**place), metric(0))
    station.settle()
    station = station.restarted()
    station.settle()
    trainer.kill()
    station.wait(1000)
    station.settle()

    events = station.events()
    station.killed()
    (died,) = [e for e in events if isinstance(e, AlertChanged)]
    assert died.name == "trainer_died" and "SIGKILL" in died.text and died.value == 137
    (last,) = [e for e in events if isinstance(e, RunFinished)]
    assert (last.status, last.exit_code) == ("failed", 137)


PRIVATE = """
import os, signal, sys, time
from pathlib import Path
from shared.emitter import Emitter
from shared.events import MetricsLogged, RunStarted
from trainer.reporting.observer import process_start_ns
from tests.telemetry.wire_client import read_rows
from trainer.reporting.sidecar import serve_command, start_sidecar
place, how = Path(sys.argv[1]), sys.argv[2]
address = f"ipc://{place}/s.sock"
sidecar = start_sidecar(serve_command(address, place / "data", place / "spool"), print)
emitter = Emitter(address, run_id="r", source="rank0", spool_dir=place / "spool")
emitter.emit(RunStarted(project="p", name="n", host=os.uname().nodename, pid=os.getpid(),
                        process_start_ns=process_start_ns(), wandb_mode="disabled"))
run = place / "data/runs/r"
step = 0
while not (run / "run.json").exists() or not any(r.source[0] == "h" for r in read_rows(run)):
    emitter.emit(MetricsLogged(kind="train", step=step, values={"train/loss": 3.0}))
    step += 1
    time.sleep(0.1)
if how == "code":
    os._exit(3)
if how == "well":
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_status
@pytest.mark.parametrize(
    ("how", "status", "code"),
    [("killed", "failed", 137), ("code", "failed", 3), ("well", "finished", 0)],
)
def test_a_private_sidecar_knows_how_its_trainer_ended(tmp_path, capsys, how, status, code):
    """It is the trainer's child, and ends with it; the run has code or signal all the same."""
    subprocess.run(
        [sys.executable, "-c", PRIVATE, str(tmp_path), how],
        env=clean_env(), timeout=120, check=False, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    run_dir = tmp_path / "data/runs/r"
    wait_until(lambda: '"ended"' in (run_dir / "run.json").read_text(), 60)

    (last,) = [
        e for row in read_rows(run_dir) if isinstance(e := row.envelope.event(), RunFinished)
    ]
    inspect(run_dir)
    said = capsys.readouterr().out

    assert (last.status, last.exit_code) == (status, code)
    assert ("SIGKILL" in said) == (how == "killed")
    assert ("died: " in said) == (code != 0)
    if how == "killed":
        assert "last minute: " in said and "row: step" in said
