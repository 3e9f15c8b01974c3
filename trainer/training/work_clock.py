"""The work clock: the time a process needs for its own part of a step.

In: the moments at which a step begins and at which its last forward pass is queued.
Out: seconds of the newest step whose time is known.
Never: waits. On a GPU the moments are events of the stream, which are polled.

In processes that add up their gradients all steps take equally long, since the fast ones
wait for the slow; only the time before that wait differs between them.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

from trainer.training.device import record_event


class WorkClock:
    """The clock of one process. Not thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._began: Any = None
        self._measured: deque[tuple[Any, Any]] = deque()

    def begin(self) -> None:
        """Mark the beginning of a step, before it waits for data."""
        self._began = moment(self._device)

    def end(self) -> None:
        """Mark the end of this process's own work; the gradient all-reduce starts now."""
        self._measured.append((self._began, moment(self._device)))

    def seconds(self) -> float:
        """Return the seconds of the newest step whose time is known; 0 before the first."""
        while self._measured and has_passed(self._measured[0][1]):
            self._seconds = seconds_between(*self._measured.popleft())
        return self._seconds


def moment(device: torch.device) -> Any:
    """Mark the present moment: by the clock, or on a GPU by an event in its stream."""
    return record_event(device, timed=True) if device.type == "cuda" else time.perf_counter()


def has_passed(at: Any) -> bool:
    """True if a moment is past. Does not wait."""
    return isinstance(at, float) or bool(at.query())


def seconds_between(began: Any, ended: Any) -> float:
    """Return the seconds between two moments that are past."""
    if isinstance(began, float):
        return float(ended - began)
    return float(began.elapsed_time(ended)) / 1e3
