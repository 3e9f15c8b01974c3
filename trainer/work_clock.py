"""Work clock: the time a process needs for its own part of a step, before it waits for others.

In: the moments at which a step begins and at which its last forward pass is queued.
Out: seconds of the newest step that is known.
Never: waits. On a GPU the moments are events of the stream, which are polled.

Between processes that add up their gradients all steps take equally long, since the fast
ones wait for the slow; only the time before that tells them apart.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

from trainer.device import record_event


class WorkClock:
    """Not thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._began: Any = None
        self._measured: deque[tuple[Any, Any]] = deque()

    def begin(self) -> None:
        """Mark the beginning of a step, with its wait for data."""
        self._began = moment(self._device)

    def end(self) -> None:
        """Mark the end of this process's own work; the gradient all-reduce starts now."""
        self._measured.append((self._began, moment(self._device)))

    def seconds(self) -> float:
        """Give the seconds of the newest step that is known, 0 before the first."""
        while self._measured and has_passed(self._measured[0][1]):
            self._seconds = seconds_between(*self._measured.popleft())
        return self._seconds


def moment(device: torch.device) -> Any:
    """Take the time: on a GPU by an event, which stands for when its stream comes to it."""
    return record_event(device, timed=True) if device.type == "cuda" else time.perf_counter()


def has_passed(at: Any) -> bool:
    """True if a moment is past; asks and does not wait."""
    return isinstance(at, float) or bool(at.query())


def seconds_between(began: Any, ended: Any) -> float:
    """Between two moments that are past."""
    if isinstance(began, float):
        return float(ended - began)
    return float(began.elapsed_time(ended)) / 1e3
