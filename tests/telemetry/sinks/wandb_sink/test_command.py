"""`python -m telemetry sink wandb RUN`: what a person or the supervisor starts, to its exit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.events import encode_event, join_events
from shared.ids import StreamId
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import read_json, write_json
from tests.fake_wandb import KEY, FakeWandb
from tests.telemetry.wire_client import metric

from .surroundings import RUN_ID

COUNT = 200


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A recorded run that has ended, and wants to be online."""
    run_dir = tmp_path / RUN_ID
    run_dir.mkdir()
    info = {"run_id": RUN_ID, "name": "n", "project": "tests", "wandb_mode": "online"}
    write_json(run_dir / "run.json", info | {"state": "ended", "status": "failed", "exit_code": 9})
    writer = JournalWriter(run_dir / "journal")
    payload = join_events([encode_event(metric(row), row, row) for row in range(COUNT)])
    writer.append(StreamId(RUN_ID, "s1", "rank0"), 0, COUNT, payload)
    writer.sync()
    writer.close()
    return run_dir


def sink(run_dir: Path, **environment: str) -> tuple[int, str]:
    """Exit code and all that was said."""
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "sink", "wandb", str(run_dir)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_run_whose_server_was_away_is_caught_up_by_the_same_command(
    run_dir: Path, server: FakeWandb
) -> None:
    """Try again later, twice; then done, with each row once and the run's own exit code."""
    wrong = "1" * 40
    first, said = sink(run_dir, WANDB_API_KEY=wrong)
    second, _ = sink(run_dir, WANDB_API_KEY=wrong)
    state = read_json(run_dir / "cursors" / "wandb.json") or {}
    third, _ = sink(run_dir)

    assert (first, second, third) == (3, 3, 0)
    assert "refuses the API key" in said
    assert wrong not in said and KEY not in said
    assert state.get("done") is not True
    assert server.runs[RUN_ID].steps() == list(range(COUNT))
    assert server.runs[RUN_ID].exit_code == 9
    cursor = read_json(run_dir / "cursors" / "wandb.json") or {}
    assert (cursor["row"], cursor["done"]) == (COUNT, True)
    assert not list((run_dir / "wandb").glob("offline-run-*"))


@pytest.mark.faults
def test_the_command_ends_though_the_server_hangs(run_dir: Path, server: FakeWandb) -> None:
    """At its start, and with rows sent, with the limits as they are: a minute. Fault 15."""
    server.fail("hang")
    first, _ = sink(run_dir)
    server.calm()
    server.on_lines = lambda run: server.fail("hang")
    second, _ = sink(run_dir)
    server.on_lines = None
    server.calm()

    third, _ = sink(run_dir)

    assert (first, third) == (3, 0)
    assert second in (0, 3)
    assert server.runs[RUN_ID].steps() == list(range(COUNT))
