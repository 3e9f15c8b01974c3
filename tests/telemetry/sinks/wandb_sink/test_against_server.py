"""Against a real server that speaks W&B's protocol, where one is named.

    WANDB_TEST_BASE_URL=http://127.0.0.1:8080 WANDB_TEST_API_KEY=… pytest …

It needs no account: any W&B-compatible server with a throw-away project does.
WANDB_TEST_SQLITE names its database where that has a table `metrics` with
run_id, key and step: then what it holds is counted, row by row.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from telemetry.journal.rows import Row
from telemetry.sinks.base import START, SinkContext, SinkUnavailable
from telemetry.sinks.wandb import WandbSink
from telemetry.sinks.wandb.offline import fragment_paths, superseded_count

from .journal import expected_history, mixed_journal
from .surroundings import PausingClock, make_context, teardown_wandb

SERVER = os.environ.get("WANDB_TEST_BASE_URL", "")
DATABASE = os.environ.get("WANDB_TEST_SQLITE", "")
pytestmark = pytest.mark.skipif(not SERVER, reason="WANDB_TEST_BASE_URL names no server")


@pytest.fixture
def context(tmp_path: Path, clock: PausingClock, monkeypatch: pytest.MonkeyPatch) -> SinkContext:
    monkeypatch.setenv("WANDB_BASE_URL", SERVER)
    monkeypatch.setenv("WANDB_API_KEY", os.environ.get("WANDB_TEST_API_KEY", ""))
    made = make_context(tmp_path / "run", "online")
    return made._replace(run_id=f"test-{uuid.uuid4().hex}", wait=clock.pause)


def check_server(context: SinkContext, rows: list[Row]) -> None:
    """The number of values of each name that can be charted, and of their distinct steps."""
    if not DATABASE:
        return
    expected: dict[str, int] = {}
    for row in expected_history(rows):
        for name, value in row.items():
            if isinstance(value, int | float) and not name.startswith("_") and "." not in name:
                expected[name] = expected.get(name, 0) + 1
    with sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True) as database:
        found = database.execute(
            "select key, count(*), count(distinct step) from metrics where run_id like ?"
            " group by key",
            (f"%{context.run_id}%",),
        ).fetchall()
    counted = {name: count for name, count, _ in found}
    assert {name: counted.get(name, 0) for name in expected} == expected
    assert all(count == distinct for _, count, distinct in found)


def test_an_online_run_is_taken_to_its_end(context: SinkContext, clock: PausingClock) -> None:
    """The position moves at the clean finish, and nothing is written offline."""
    rows = mixed_journal(200)
    sink = WandbSink(context, clock, clock.pause)
    sink.open(START)
    sink.write(rows)

    assert sink.commit().row == 0
    final = sink.finish("finished", 0)

    assert (final.row, final.state["mode"]) == (200, "online")
    assert fragment_paths(context.out_dir / "wandb", context.run_id) == []
    check_server(context, rows)


def test_a_run_that_began_without_a_key_is_caught_up(
    context: SinkContext, clock: PausingClock
) -> None:
    rows = mixed_journal(200)
    with pytest.MonkeyPatch.context() as broken:
        broken.delenv("WANDB_API_KEY")
        sink = WandbSink(context, clock, clock.pause)
        sink.open(START)
        sink.write(rows)
        with pytest.raises(SinkUnavailable):
            sink.finish("finished", 0)
        sink.close()
    teardown_wandb()

    sink = WandbSink(context, clock, clock.pause)
    sink.write(rows[sink.open(START) :])
    assert sink.finish("finished", 0).row == 200

    assert superseded_count(context.out_dir / "wandb", context.run_id) == 1
    check_server(context, rows)


def test_the_sync_command_uploads_every_fragment(context: SinkContext, clock: PausingClock) -> None:
    """Also where one of them was torn by a crash: it is cut, and its whole records are taken.

    A second sync takes none of them again.
    """
    context = context._replace(options={"mode": "offline"})
    rows = mixed_journal(400)
    for end in (150, 400):
        sink = WandbSink(context)
        sink.open(START)
        sink.write(rows[:end])
        sink.close()
        if end == 150:
            (first,) = fragment_paths(context.out_dir / "wandb", context.run_id)
            first.write_bytes(first.read_bytes()[:-5])

    command = sink.sync_command()
    assert command is not None
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = [
        subprocess.run(
            command,
            shell=True,
            env=os.environ | {"PATH": tools},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        for _ in range(2)
    ]

    assert done[0].stderr.count("Finished syncing") == 2
    assert done[1].stderr.count("Finished syncing") == 0
    check_server(context, rows)
