"""Work clock: what a process needs for its own part of a step, before it waits for others.

In: the moments at which a step begins and at which its last forward pass is queued.
Out: seconds of the newest step that is known.
Never: waits. On a GPU the moments are events of the stream, which are polled.

Between processes that add up their gradients all steps take equally long, since the fast
ones wait for the slow; only the time before that tells them apart.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, cast

import torch


class WorkClock:
    """Not thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._began: Any = None
        self._measured: deque[tuple[Any, Any]] = deque()

    def begin(self) -> None:
        """A step begins, with its wait for data."""
        self._began = moment(self._on_gpu)

    def end(self) -> None:
        """What follows waits for other processes."""
        self._measured.append((self._began, moment(self._on_gpu)))

    def seconds(self) -> float:
        """Of the newest step that is known, 0 before the first."""
        while self._measured and has_passed(self._measured[0][1]):
            self._seconds = seconds_between(*self._measured.popleft())
        return self._seconds


def moment(on_gpu: bool) -> Any:
    """Now: on a GPU an event, which is now when the stream comes to it."""
    if not on_gpu:
        return time.perf_counter()
    event = cast(Any, torch.cuda.Event)(enable_timing=True)
    event.record()
    return event


def has_passed(at: Any) -> bool:
    """Whether a moment is past; asks and does not wait."""
    return isinstance(at, float) or bool(at.query())


def seconds_between(began: Any, ended: Any) -> float:
    """Between two moments that are past."""
    if isinstance(began, float):
        return float(ended - began)
    return float(began.elapsed_time(ended)) / 1e3
