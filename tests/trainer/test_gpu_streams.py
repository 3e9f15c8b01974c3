"""Moments and copies on a GPU that is not the current one, with GPUs that are pretended.

They behave as CUDA's do in what matters here: work for a device is done when its stream
comes to it; an event recorded without a stream lies on that of the *current* device; an
event on an idle stream has passed at once.
"""

from __future__ import annotations

from collections import deque

import pytest
import torch

from trainer import run as run_module
from trainer.args import parse_args
from trainer.training.block_profile import BlockProfile
from trainer.training.device import allow_tf32, use_device
from trainer.training.scalar_copies import ScalarCopies
from trainer.training.work_clock import WorkClock

SECOND = torch.device("cuda:1")


class Stream:
    """A queue of work, done when the test says so."""

    def __init__(self) -> None:
        self.queue: deque = deque()

    def run_all(self) -> None:
        while self.queue:
            self.queue.popleft()()


class Gpus:
    """Two of them, the first of which is current until another is set."""

    def __init__(self) -> None:
        self.streams = [Stream(), Stream()]
        self.current = 0

    def set_device(self, device) -> None:
        index = device if isinstance(device, int) else torch.device(device).index
        if index is None:
            raise ValueError("Expected a torch.device with a specified index or an integer")
        self.current = index

    def current_stream(self, device=None) -> Stream:
        return self.streams[self.current if device is None else torch.device(device).index]

    def event_class(gpus):
        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.has_passed = False

            def record(self, stream: Stream | None = None) -> None:
                queue = (stream or gpus.current_stream()).queue
                if queue:
                    queue.append(lambda: setattr(self, "has_passed", True))
                else:
                    self.has_passed = True

            def query(self) -> bool:
                return self.has_passed

            def elapsed_time(self, later) -> float:
                assert self.has_passed and later.has_passed, "CUDA raises: not ready"
                return 5.0

        return Event


class Pinned(torch.Tensor):
    """A buffer that is filled when the stream of the second GPU comes to it."""

    gpus: Gpus

    def copy_(self, source, non_blocking=False):
        target = self.as_subclass(torch.Tensor)
        self.gpus.streams[1].queue.append(lambda: target.copy_(source))
        return self


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    gpus = Gpus()
    monkeypatch.setattr(torch.cuda, "Event", gpus.event_class())
    monkeypatch.setattr(torch.cuda, "current_stream", gpus.current_stream)
    monkeypatch.setattr(torch.cuda, "set_device", gpus.set_device)
    empty = torch.empty

    def pinned_empty(*shape, pin_memory=False, **options):
        made = empty(*shape, **options)
        return made.fill_(-1.0).as_subclass(Pinned) if pin_memory else made

    monkeypatch.setattr(torch, "empty", pinned_empty)
    monkeypatch.setattr(Pinned, "gpus", gpus, raising=False)
    return gpus


def test_numbers_of_another_gpu_arrive_when_their_copy_is_done(gpus):
    """Before that the buffer holds what was there, which is no number of this run."""
    copies: ScalarCopies[str] = ScalarCopies(SECOND)

    copies.send("loss", {"train/loss": torch.tensor(2.5)})
    early = copies.arrived()
    gpus.streams[1].run_all()

    assert early == []
    assert copies.arrived() == [("loss", {"train/loss": 2.5})]


def test_the_work_clock_of_another_gpu_waits_for_that_gpu(gpus):
    """A step is known when its own stream has come to its end."""
    clock = WorkClock(SECOND)
    gpus.streams[1].queue.append(lambda: None)

    clock.begin()
    clock.end()
    early = clock.seconds()
    gpus.streams[1].run_all()

    assert early == 0.0
    assert clock.seconds() == 0.005


def test_block_times_of_another_gpu_are_those_of_its_stream(gpus):
    """The profile comes when the last of its moments is past there."""
    block = torch.nn.Linear(2, 2)
    profile = BlockProfile([block], SECOND)
    gpus.streams[1].queue.append(lambda: None)

    with profile.step(3):
        block(torch.ones(1, 2))
    early = profile.arrived()
    gpus.streams[1].run_all()

    assert early == []
    assert profile.arrived() == [(3, {"time/layers.0/forward_seconds": 0.005})]


def test_the_device_of_a_run_is_made_the_current_one(gpus):
    """One process alone has to do it too; a CPU has nothing to set."""
    currents = []

    for name in ("cpu", "cuda:1", "cuda"):
        use_device(torch.device(name))
        currents.append(gpus.current)

    assert currents == [0, 1, 0]


def test_a_run_uses_its_device_before_anything_is_built(gpus, small_run, monkeypatch):
    """What is not told a device takes the current one."""
    seen = []

    class Stop(Exception):
        pass

    def make_processes(place, device):
        seen.append((device, gpus.current))
        raise Stop

    monkeypatch.setattr(run_module, "make_processes", make_processes)
    monkeypatch.setattr(run_module, "allow_tf32", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(Stop):
        run_module.run(parse_args([*small_run, "--device", "cuda:1"], environ={}), {})

    assert seen == [(SECOND, 1)]


def test_tf32_is_for_gpus_only(monkeypatch):
    """On a CPU the setting would be of no use, and is left alone."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision

    allow_tf32(torch.device("cpu"))
    on_cpu = matmul.fp32_precision
    try:
        allow_tf32(SECOND)
        on_gpu = matmul.fp32_precision
    finally:
        matmul.fp32_precision = before

    assert (on_cpu, on_gpu) == (before, "tf32")
