"""kill -9 of a sink, of its wandb-core, or of both, while rows are on their way to a server."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.fake_wandb import FakeRun, FakeWandb

from .conftest import RUN_ID
from .journal import expected_history, mixed_journal, server_history, steps

VICTIMS = ("sink", "core", "both")


def start(out_dir: Path, count: int, pace_s: float) -> subprocess.Popen[bytes]:
    module = f"{__package__}.run_online"
    command = [sys.executable, "-m", module, str(out_dir), str(count), str(pace_s)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def kill(process: subprocess.Popen[bytes], victim: str) -> None:
    sink = psutil.Process(process.pid)
    cores = [child for child in sink.children(recursive=True) if child.name() == "wandb-core"]
    # wandb-core first, else it is an orphan, and hard to find.
    for target in [*(cores if victim != "sink" else []), *([sink] if victim != "core" else [])]:
        with contextlib.suppress(psutil.NoSuchProcess):
            target.kill()


def kill_on_the_way(
    process: subprocess.Popen[bytes], server: FakeWandb, victim: str, delay_s: float
) -> None:
    """Kill some time after the server has got the next rows, or from the middle of the request."""
    done = threading.Event()

    def strike() -> None:
        kill(process, victim)
        done.set()

    def on_lines(run: FakeRun) -> None:
        server.on_lines = None
        if delay_s:
            threading.Timer(delay_s, strike).start()
        else:
            strike()

    server.on_lines = on_lines
    while not done.wait(0.05):
        assert process.poll() is None, f"the sink ended by itself with {process.poll()}"
    server.on_lines = None
    process.wait(60)


def survive(tmp_path: Path, server: FakeWandb, count: int, kills: int, seed: int) -> None:
    """Kill so many times, let the last one end, and look at what the server has."""
    dice = random.Random(seed)
    out_dir = tmp_path / "run"
    out_dir.mkdir()
    in_flight = []
    for number in range(kills):
        process = start(out_dir, count, 0.01)
        delay_s = dice.choice([0.0, dice.uniform(0, 1)])
        kill_on_the_way(process, server, VICTIMS[number % len(VICTIMS)], delay_s)
        in_flight.append(unconfirmed(out_dir))

    codes = []
    while not codes or (codes[-1] == 3 and len(codes) < 3):
        codes.append(start(out_dir, count, 0.0).wait(300))

    run = server.runs[RUN_ID]
    rows = mixed_journal(count)
    assert min(in_flight) > 0, in_flight
    assert codes[-1] == 0
    assert run.conflicts == 0
    assert steps(run.rows()) == steps(expected_history(rows))
    assert server_history(run) == expected_history(rows)
    assert json.loads((out_dir / "cursor.json").read_text())[0] == count


def unconfirmed(out_dir: Path) -> int:
    """Rows that wandb was given and no cursor names."""
    cursor = out_dir / "cursor.json"
    named = json.loads(cursor.read_text())[0] if cursor.exists() else 0
    return int((out_dir / "written.json").read_text()) - int(named)


def test_every_row_is_on_the_server_once_after_kills_at_random_points(
    tmp_path: Path, server: FakeWandb
) -> None:
    """Whatever had arrived is not sent again, and nothing else is missing. Faults 17 and 18."""
    survive(tmp_path, server, count=3000, kills=3, seed=1)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_every_row_is_on_the_server_once_after_many_kills(
    tmp_path: Path, server: FakeWandb, seed: int
) -> None:
    """The same, thirty times each. Faults 17 and 18."""
    survive(tmp_path, server, count=20_000, kills=30, seed=seed)
