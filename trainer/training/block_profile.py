"""The profile of blocks: the time of each block's forward and backward in selected steps.

In: the blocks of an encoder.
Out: seconds by block and direction, once they are known.
Never: waits; on a GPU the moments are events of the stream, which are polled.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trainer.training.work_clock import has_passed, moment, seconds_between

Spans = dict[str, list[list[Any]]]


class BlockProfile:
    """The profile of one run's blocks, which have hooks only while a step is measured.

    Not thread-safe.
    """

    def __init__(self, blocks: Iterable[nn.Module], device: torch.device) -> None:
        self._blocks = list(blocks)
        self._device = device
        self._measured: deque[tuple[int, Spans]] = deque()

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Measure the forwards and backwards of one step within the context."""
        spans: Spans = defaultdict(list)
        hooks = []
        for number, block in enumerate(self._blocks):
            name = f"time/layers.{number}"
            hooks.append(block.register_forward_pre_hook(self._entering(spans, name)))
            hooks.append(block.register_forward_hook(self._leaving(spans, name)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._measured.append((step, spans))

    def arrived(self) -> list[tuple[int, dict[str, float]]]:
        """Return (step, seconds by metric name) of steps whose times are known, oldest first.

        The times of a step's micro batches are added up. Each step is returned once.
        """
        done = []
        while self._measured and _is_over(self._measured[0][1]):
            step, spans = self._measured.popleft()
            seconds = {
                name: sum(seconds_between(*span) for span in measured if len(span) == 2)
                for name, measured in spans.items()
            }
            done.append((step, seconds))
        return done

    def _entering(self, spans: Spans, name: str) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...]) -> None:
            x: Any = args[0]
            if x.requires_grad:
                x.register_hook(lambda grad: self._end(spans, f"{name}/backward_seconds"))
            self._begin(spans, f"{name}/forward_seconds")

        return hook

    def _leaving(self, spans: Spans, name: str) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            self._end(spans, f"{name}/forward_seconds")
            if out.requires_grad:
                out.register_hook(lambda grad: self._begin(spans, f"{name}/backward_seconds"))

        return hook

    def _begin(self, spans: Spans, name: str) -> None:
        spans[name].append([moment(self._device)])

    def _end(self, spans: Spans, name: str) -> None:
        spans[name][-1].append(moment(self._device))


def _is_over(spans: Spans) -> bool:
    return all(has_passed(span[-1]) for measured in spans.values() for span in measured)
