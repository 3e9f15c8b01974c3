"""Several emitters of one run beside a real sidecar: workers, restarts, and jobs with one id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.events import MetricsLogged
from telemetry.journal.reader import JournalReader
from tests.telemetry.sidecar_process import SidecarProcess, clean_env

PRELUDE = """
import multiprocessing, os, sys, time
from pathlib import Path
from shared.emitter import Emitter
from shared.events import MetricsLogged, RunFinished, RunStarted

def say(out, who, count=20, pause_s=0.0):
    for step in range(count):
        out.emit(MetricsLogged(kind="custom", step=step, values={who: float(step)}))
        time.sleep(pause_s)

def say_beside(out, who, barrier):
    say(out, who, 20, 0.01)
    # The name of one that has ended is free for the next: all are here until all have theirs.
    while ".worker" not in out.source:
        time.sleep(0.01)
    barrier.wait(60)

if __name__ == "__main__":
    out = Emitter(sys.argv[1], run_id="r", source="rank0", spool_dir=sys.argv[2])
    out.emit(RunStarted(project="p", name="n", wandb_mode="disabled"))
SCRIPT
"""


@pytest.fixture
def sidecar() -> Iterator[SidecarProcess]:
    with (
        tempfile.TemporaryDirectory(prefix="tm-", dir="/tmp") as name,
        SidecarProcess(Path(name) / "data") as service,
    ):
        yield service


def finish(trainer: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a training script, and return what it said."""
    said = trainer.communicate(timeout=90)[1]
    assert trainer.returncode == code, said
    return said


def started(sidecar: SidecarProcess, script: str, *more: str) -> subprocess.Popen[str]:
    """A training script that runs beside the sidecar."""
    path = sidecar.data_dir.with_name(f"train{abs(hash(script))}.py")
    path.write_text(PRELUDE.replace("SCRIPT", textwrap.indent(textwrap.dedent(script), " " * 4)))
    return subprocess.Popen(
        [sys.executable, path, sidecar.endpoint, sidecar.data_dir.with_name("spool"), *more],
        env=clean_env(PYTHONPATH=str(Path.cwd())), text=True, stderr=subprocess.PIPE,
    )  # fmt: skip


def rows(sidecar: SidecarProcess) -> dict[str, dict[str, list[int]]]:
    """Steps by the name of the value, then by source, each in the order of the journal."""
    found: dict[str, dict[str, list[int]]] = {}
    with JournalReader(sidecar.data_dir / "runs" / "r" / "journal") as reader:
        while not (batch := reader.read()).is_end or batch.rows:
            for row in batch.rows:
                event = row.envelope.event()
                if isinstance(event, MetricsLogged) and event.kind == "custom":
                    for name in event.values:
                        if not name.startswith("telemetry/"):
                            found.setdefault(name, {}).setdefault(row.source, []).append(event.step)
    return found


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_beside_their_parent_are_all_recorded(sidecar, context):
    """Row 40: each under its own source; the parent's own rows are all there too."""
    script = f"""
    context = multiprocessing.get_context("{context}")
    barrier = context.Barrier(3)
    children = [
        context.Process(target=say_beside, args=(out, f"w{{n}}", barrier)) for n in range(3)
    ]
    [child.start() for child in children]
    say(out, "parent", 40, 0.02)
    [child.join() for child in children]
    out.emit(RunFinished(status="finished", exit_code=0))
    sys.exit(0 if out.close(20) and not any(child.exitcode for child in children) else 9)
    """
    finish(started(sidecar, script))

    found = rows(sidecar)
    assert found.pop("parent") == {"rank0": list(range(40))}
    sources = {source for by_source in found.values() for source in by_source}
    assert sources == {"rank0.worker0", "rank0.worker1", "rank0.worker2"}
    assert all(steps == list(range(20)) for by in found.values() for steps in by.values())


def test_a_restart_right_after_a_crash_is_recorded(sidecar):
    """Row 40: twice, and the rows of all three."""
    for who, ending in (("a", "os._exit(9)"), ("b", "os._exit(9)"), ("c", "sys.exit(0)")):
        trainer = started(sidecar, f"say(out, '{who}', 5, 0.05)\ntime.sleep(0.3)\n{ending}")
        assert finish(trainer, 9 if "_exit" in ending else 0) == ""

    assert rows(sidecar) == {who: {"rank0": list(range(5))} for who in "abc"}


def test_a_cell_that_runs_again_and_jobs_with_one_id_are_recorded_and_said(sidecar):
    """Row 40: once, by the one that came second."""
    cell = """
    first = out
    say(first, "first")
    for again in ("second", "third"):
        out = Emitter(sys.argv[1], run_id="r", source="rank0", spool_dir=sys.argv[2])
        out.emit(RunStarted(project="p", name="n", wandb_mode="disabled"))
        say(out, again)
        time.sleep(0.3)
    say(first, "first again", 20, 0.05)
    """
    notebook = started(sidecar, cell)
    time.sleep(0.5)
    other = started(sidecar, "say(out, 'other', 20, 0.05)")
    said = [finish(notebook), finish(other)]

    names = ("first", "second", "third", "first again", "other")
    assert rows(sidecar) == {name: {"rank0": list(range(20))} for name in names}
    assert sum(text.count("already being recorded") for text in said) >= 2


def test_a_frozen_sidecar_gets_what_workers_said_meanwhile(sidecar):
    """Row 40, in its slow form: workers end while nobody answers."""
    script = """
    say(out, "before")
    time.sleep(0.5)
    print(flush=True, end="frozen?", file=sys.stderr)
    sys.stdin.readline()
    children = [multiprocessing.get_context("fork").Process(target=say, args=(out, f"w{n}"))
                for n in range(2)]
    [child.start() for child in children]
    [child.join() for child in children]
    say(out, "after")
    out.close(1)
    os._exit(0)
    """
    path = sidecar.data_dir.with_name("frozen.py")
    path.write_text(PRELUDE.replace("SCRIPT", textwrap.indent(textwrap.dedent(script), " " * 4)))
    trainer = subprocess.Popen(
        [sys.executable, path, sidecar.endpoint, sidecar.data_dir.with_name("spool")],
        env=clean_env(PYTHONPATH=str(Path.cwd())), text=True,
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert trainer.stderr.read(7) == "frozen?"
    os.kill(sidecar.service.pid, signal.SIGSTOP)
    trainer.communicate("now\n", timeout=60)
    os.kill(sidecar.service.pid, signal.SIGCONT)

    finish(started(sidecar, "say(out, 'next')\ntime.sleep(3)"))

    found = rows(sidecar)
    assert set(found) == {"before", "w0", "w1", "after", "next"}
    assert all(steps == list(range(20)) for by in found.values() for steps in by.values())
