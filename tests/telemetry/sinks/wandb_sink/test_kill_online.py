"""kill -9 of a sink, of its wandb-core, or of both, while rows are on their way to a server."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fake_wandb import FakeRun, FakeWandb
from tests.telemetry.waiting import wait_until

from .journal import expected_history, mixed_journal, server_history, steps
from .surroundings import RUN_ID

VICTIMS = ("sink", "core", "both")
UNAVAILABLE = 5


@contextlib.contextmanager
def started(out_dir: Path, *count: int) -> Iterator[subprocess.Popen[bytes]]:
    """A sink of a run that goes on, or of one that ends with its count-th row."""
    module = f"{__package__}.run_online"
    command = [sys.executable, "-m", module, str(out_dir), *map(str, count)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        # One that a failed test left behind would write into the next one's directory.
        process.kill()
        process.wait()


def kill(process: subprocess.Popen[bytes], victim: str) -> None:
    sink = psutil.Process(process.pid)
    cores = [child for child in sink.children(recursive=True) if child.name() == "wandb-core"]
    # wandb-core first, else it is an orphan, and hard to find.
    for target in [*(cores if victim != "sink" else []), *([sink] if victim != "core" else [])]:
        target.kill()


def kill_on_the_way(out_dir: Path, server: FakeWandb, victim: str, delay_s: float) -> None:
    """Kill some time after the server has got a sink's rows, or from the middle of the request.

    A server on busy cores may be taken for one that is away: then the sink ends as
    unavailable, and another is started, as the supervisor does.
    """
    for _ in range(UNAVAILABLE):
        (out_dir / "written.json").unlink(missing_ok=True)
        with started(out_dir) as process:
            struck, code = strike_once(process, out_dir, server, victim, delay_s)
        if struck:
            assert code == (3 if victim == "core" else -signal.SIGKILL)
            return
        assert code == 3, f"the sink of a run that goes on ended by itself with {code}"
    pytest.fail(f"the sink was unavailable {UNAVAILABLE} times in a row")


def strike_once(
    process: subprocess.Popen[bytes], out_dir: Path, server: FakeWandb, victim: str, delay_s: float
) -> tuple[bool, int]:
    """Whether the blow fell before the sink ended by itself, and how the sink ended."""
    struck = threading.Event()

    def strike() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            kill(process, victim)
            struck.set()

    def on_lines(run: FakeRun) -> None:
        """The server answers only when this returns."""
        server.on_lines = None
        if delay_s:
            threading.Timer(delay_s, strike).start()
        else:
            strike()

    def has_ended() -> bool:
        return process.poll() is not None

    # Not before it has written: the wandb-core of the sink before outlives it by a moment, and
    # what that still sends would let the blow fall on a sink that has nothing on its way.
    wait_until(lambda: (out_dir / "written.json").exists() or has_ended(), 100)
    server.on_lines = on_lines
    wait_until(lambda: struck.is_set() or has_ended(), 100)
    server.on_lines = None
    return struck.is_set(), process.wait(60)


def survive(tmp_path: Path, server: FakeWandb, kills: int, seed: int) -> None:
    """Kill so many times, let the last one end, and look at what the server has."""
    dice = random.Random(seed)
    out_dir = tmp_path / "run"
    out_dir.mkdir()
    written, in_flight = [], []
    for number in range(kills):
        delay_s = dice.choice([0.0, dice.uniform(0, 1)])
        kill_on_the_way(out_dir, server, VICTIMS[number % len(VICTIMS)], delay_s)
        written.append(given(out_dir))
        in_flight.append(written[-1] - confirmed(out_dir))

    # Behind all that any of them was given, also without having been able to say so.
    count = max(written) + 500
    codes = []
    while not codes or (codes[-1] == 3 and len(codes) < UNAVAILABLE):
        with started(out_dir, count) as process:
            codes.append(process.wait(300))

    run = server.runs[RUN_ID]
    rows = mixed_journal(count)
    print(f"{kills} kills, in flight {in_flight}, {count} rows, codes {codes}")
    assert min(in_flight) > 0, in_flight
    assert codes[-1] == 0
    assert run.conflicts == 0
    assert steps(run.rows()) == steps(expected_history(rows))
    assert server_history(run) == expected_history(rows)
    assert confirmed(out_dir) == count


def given(out_dir: Path) -> int:
    """The row behind the last that wandb was given."""
    return int(json.loads((out_dir / "written.json").read_text()))


def confirmed(out_dir: Path) -> int:
    """The row behind the last that the cursor names."""
    cursor = out_dir / "cursor.json"
    return int(json.loads(cursor.read_text())[0]) if cursor.exists() else 0


def test_every_row_is_on_the_server_once_after_kills_at_random_points(
    tmp_path: Path, server: FakeWandb
) -> None:
    """Whatever had arrived is not sent again, and nothing else is missing. Faults 17 and 18."""
    survive(tmp_path, server, kills=3, seed=1)


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(4))
def test_every_row_is_on_the_server_once_after_many_kills(
    tmp_path: Path, server: FakeWandb, seed: int
) -> None:
    """The same, twice for each victim. Faults 17 and 18."""
    survive(tmp_path, server, kills=6, seed=seed)
