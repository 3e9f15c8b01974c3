"""What the trainer's tests share. Nothing here reaches a network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shared.emitter import EmitterStats
from shared.events import Event, MetricsLogged
from trainer.reporting import telemetry_link


class RecordingEmitter:
    """Keeps every event; on_event may do something at the moment of one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.on_event: Callable[[Event], None] = lambda event: None

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)

    def stats(self) -> EmitterStats:
        return EmitterStats(emitted=len(self.events))

    def close(self, timeout_s: float | None = None) -> bool:
        return True

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def metrics(self, kind: str, name: str) -> dict[int | None, object]:
        """One metric by step."""
        found = (e for e in self.events if isinstance(e, MetricsLogged) and e.kind == kind)
        return {event.step: event.values[name] for event in found}


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models are faster so, and the machine may be shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> RecordingEmitter:
    """The emitter of every run in the test."""
    recorder = RecordingEmitter()
    monkeypatch.setattr(telemetry_link, "open_emitter", lambda *args: recorder)
    return recorder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizing the sample takes a second; once is enough."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small_run(tmp_path: Path, cache_dir: Path) -> list[str]:
    """Arguments of a run of a few seconds that records nothing."""
    return (
        f"--model_size tiny --dataset sample --max_length 16 --batch_size 4 --max_steps 4 "
        f"--num_workers 0 --eval_batches 1 --log_interval 1 --eval_interval 2 --quant_interval 2 "
        f"--no_sidecar --output_dir {tmp_path / 'out'} --cache_dir {cache_dir}"
    ).split()
