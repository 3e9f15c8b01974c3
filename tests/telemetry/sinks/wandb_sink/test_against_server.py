"""Against a real server that speaks W&B's protocol, where one is named.

    WANDB_TEST_BASE_URL=http://127.0.0.1:8080 WANDB_TEST_API_KEY=… pytest …

It needs no account: any W&B-compatible server with a throw-away project does.
What the server then holds is its own affair to show; here it has to have taken
everything, which wandb's finish and sync tell.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from telemetry.sinks.base import START, SinkContext
from telemetry.sinks.wandb import WandbSink
from telemetry.sinks.wandb.offline import fragment_paths

from .conftest import make_context
from .journal import mixed_journal

SERVER = os.environ.get("WANDB_TEST_BASE_URL", "")
pytestmark = pytest.mark.skipif(not SERVER, reason="WANDB_TEST_BASE_URL names no server")


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SinkContext:
    monkeypatch.setenv("WANDB_BASE_URL", SERVER)
    monkeypatch.setenv("WANDB_API_KEY", os.environ.get("WANDB_TEST_API_KEY", ""))
    return make_context(tmp_path / "run")._replace(run_id=f"test-{uuid.uuid4().hex}")


def test_an_online_run_is_taken_to_its_end(context: SinkContext) -> None:
    """The position moves at the clean finish, and nothing is written offline."""
    sink = WandbSink(context._replace(options={"mode": "online"}))
    sink.open(START)
    sink.write(mixed_journal(200))

    assert sink.commit().row == 0
    final = sink.finish("finished", 0)

    assert (final.row, final.state["mode"]) == (200, "online")
    assert fragment_paths(context.out_dir / "wandb", context.run_id) == []


def test_the_sync_command_uploads_every_fragment(context: SinkContext) -> None:
    """Also where one of them was torn by a crash: its whole records are taken."""
    rows = mixed_journal(400)
    for end in (150, 400):
        sink = WandbSink(context)
        sink.open(START)
        sink.write(rows[:end])
        sink.close()
    first = fragment_paths(context.out_dir / "wandb", context.run_id)[0]
    first.write_bytes(first.read_bytes()[:-5])

    command = sink.sync_command()
    assert command is not None
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        env=os.environ | {"PATH": tools},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.stderr.count("View run") == 2
    assert "ends with an incomplete record" in done.stderr
    assert done.stderr.count("Finished syncing") == 1
