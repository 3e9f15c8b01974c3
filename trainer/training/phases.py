"""Phases: the seconds that the parts of a step, evaluations and checkpoints take.

In: the moments at which each part ends.
Out: seconds, once the device has passed those moments.
Never: waits, except for the last of a run. On a GPU the moments are events of the stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch

from trainer.training.work_clock import has_passed, moment, seconds_between

INPUT: Final = "train/input_seconds"
FORWARD: Final = "train/forward_seconds"
BACKWARD: Final = "train/backward_seconds"
OPTIMIZER: Final = "train/optimizer_seconds"
EVALUATION: Final = "time/evaluation_seconds"
CHECKPOINT: Final = "time/checkpoint_seconds"


class StepParts:
    """The parts of steps, by the names of their metrics. Not thread-safe.

    On a GPU the input takes time only where the GPU has nothing else to do meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moments: list[tuple[str, Any]] = []
        self._steps: deque[list[tuple[str, Any]]] = deque()

    def begin(self) -> None:
        """Begin a step, before it waits for data."""
        self._moments = [("", moment(self._device))]

    def mark(self, part: str) -> None:
        """Note that a part ends; the next one begins. A part may come several times in a step."""
        self._moments.append((part, moment(self._device)))

    def end(self, part: str) -> None:
        """Note that the last part of the step ends."""
        self.mark(part)
        self._steps.append(self._moments)

    def take(self) -> dict[str, float]:
        """Return the mean seconds a step by metric name, of the steps known since the last call."""
        sums: dict[str, float] = {}
        count = 0
        while self._steps and has_passed(self._steps[0][-1][1]):
            moments = self._steps.popleft()
            count += 1
            for (_, began), (part, ended) in pairwise(moments):
                sums[part] = sums.get(part, 0.0) + seconds_between(began, ended)
        return {name: seconds / count for name, seconds in sums.items()}


class Span(NamedTuple):
    """A phase outside of steps, behind a step; name is that of its metric."""

    name: str
    step: int
    seconds: float


class Spans:
    """Evaluations and checkpoints that have begun and perhaps ended. Not thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._measured: deque[tuple[str, int, Any, Any]] = deque()

    @contextmanager
    def of(self, name: str, step: int) -> Iterator[None]:
        """Measure a phase; one that raises is not measured."""
        began = moment(self._device)
        yield
        self._measured.append((name, step, began, moment(self._device)))

    def arrived(self, *, wait: bool = False) -> list[Span]:
        """Return the phases whose end the device has passed. wait: let it pass them all."""
        if wait and self._measured and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        found = []
        while self._measured and has_passed(self._measured[0][3]):
            name, step, began, ended = self._measured.popleft()
            found.append(Span(name, step, seconds_between(began, ended)))
        return found
