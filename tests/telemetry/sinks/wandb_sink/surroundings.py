"""Surroundings of a sink in a test: a run's context, a clock, and places of wandb's own files."""

from __future__ import annotations

import contextlib
import gc
import subprocess
from pathlib import Path
from typing import Any

from telemetry.run_dir import RunFile
from telemetry.sinks.base import SinkContext
from tests.fakes import ManualClock

RUN_ID = "20260101-120000-abcd1234"


def teardown_wandb() -> None:
    """What the end of a process does: let go of wandb-core, and see it end."""
    import wandb

    # wandb drops its handle without waiting, and Python warns of that, some time later.
    handles = [found for found in gc.get_objects() if type(found) is subprocess.Popen]
    # A test may have killed wandb-core: then there is nothing to let go of.
    with contextlib.suppress(ConnectionError):
        wandb.teardown()
    for handle in handles:
        if "wandb-core" in str(handle.args):
            handle.wait(timeout=20)


def hermetic(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    return {
        "HOME": str(home),
        "NETRC": str(home / "netrc"),
        "WANDB_CONFIG_DIR": str(home / "config"),
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_DATA_DIR": str(home / "data"),
        "WANDB_DIR": str(home / "elsewhere"),
        "WANDB_BASE_URL": "http://127.0.0.1:1",
    }


class PausingClock(ManualClock):
    """Time that passes when somebody waits."""

    def pause(self, seconds: float) -> bool:
        self.advance(seconds)
        return False


def make_context(out_dir: Path, mode: str = "offline", **run: Any) -> SinkContext:
    said = {
        "run_id": RUN_ID,
        "project": "tests",
        "name": "a run",
        "tags": ["tiny", "t" * 80],
        "notes": "",
        "group": "",
        "wandb_mode": mode,
        "config": {"lr": 0.1, "model": {"layers": 2}},
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    return SinkContext(RUN_ID, out_dir, RunFile(**said | run), {})
