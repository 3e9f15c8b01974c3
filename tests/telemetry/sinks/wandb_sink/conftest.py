"""A wandb that sees nothing but the test's own directory, and no network."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from telemetry.sinks.base import SinkContext
from tests.fake_wandb import KEY, FakeWandb

from .stage import Stage
from .surroundings import PausingClock, hermetic, make_context, teardown_wandb


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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    """A server that wandb is set up for, with the right key."""
    with FakeWandb() as fake:
        monkeypatch.setenv("WANDB_BASE_URL", fake.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1.0")
        yield fake


@pytest.fixture
def clock() -> PausingClock:
    return PausingClock()


@pytest.fixture
def context(tmp_path: Path) -> SinkContext:
    return make_context(tmp_path / "run")


@pytest.fixture
def stage(tmp_path: Path, clock: PausingClock, server: FakeWandb) -> Stage:
    """A run that should be online, and a server that is well."""
    context = make_context(tmp_path / "run", "online")._replace(wait=clock.pause)
    return Stage(context, clock, server)
