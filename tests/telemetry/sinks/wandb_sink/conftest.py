"""A wandb that sees nothing but the test's own directory, and no network."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry.run_dir import RunFile
from telemetry.sinks.base import SinkContext
from telemetry.sinks.wandb import client
from tests.fake_wandb import KEY, FakeWandb

RUN_ID = "20260101-120000-abcd1234"


@pytest.fixture(autouse=True)
def own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings of the person who runs the tests; no wandb-core left behind."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if not name.startswith("WANDB_TEST_"):
            monkeypatch.delenv(name)
    for name, folder in hermetic(tmp_path).items():
        monkeypatch.setenv(name, folder)
    yield
    if sys.modules.get("wandb"):
        teardown_wandb()


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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    """A server that wandb is set up for, with the right key."""
    with FakeWandb() as fake:
        monkeypatch.setenv("WANDB_BASE_URL", fake.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setitem(client._SETTINGS, "x_file_stream_transmit_interval", 1.0)
        yield fake


class ManualClock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.now_ns = 10**18

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    def pause(self, seconds: float) -> bool:
        self.now_ns += int(seconds * 1e9)
        return False


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def context(tmp_path: Path) -> SinkContext:
    return make_context(tmp_path / "run")


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
