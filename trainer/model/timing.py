"""How long each block's forward takes, where somebody asks.

In: an encoder, for the length of a with statement.
Out: seconds a block, once the device has come so far.
Never: waits for the device; on one, the times are those between two of its events.

Not thread-safe. Hooks keep a compiled model from being one graph: time one step in many.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.model.block import Block
from trainer.model.readings import metric_path


class BlockTimer:
    """Times the forwards of all blocks between __enter__ and __exit__.

    read() gives seconds by metric name, summed over those forwards.
    """

    def __init__(self, model: nn.Module, clock: Callable[[], float] = time.perf_counter) -> None:
        self._blocks = {n: m for n, m in model.named_modules() if isinstance(m, Block)}
        self._clock = clock
        self._on_gpu = next(model.parameters()).is_cuda
        self._marks: list[tuple[str, Any, Any]] = []
        self._started: dict[str, Any] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> BlockTimer:
        for name, block in self._blocks.items():
            self._hooks.append(block.register_forward_pre_hook(self._starting(name)))
            self._hooks.append(block.register_forward_hook(self._ending(name)))
        return self

    def __exit__(self, *exc: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def read(self) -> dict[str, float] | None:
        """quant/layers.N/forward_seconds by name; None while the device is not so far."""
        if self._on_gpu and not all(end.query() for _, _, end in self._marks):
            return None
        found: dict[str, float] = {}
        for name, start, end in self._marks:
            seconds = start.elapsed_time(end) / 1e3 if self._on_gpu else end - start
            metric = f"quant/{metric_path(name)}/forward_seconds"
            found[metric] = found.get(metric, 0.0) + seconds
        return found

    def _mark(self) -> Any:
        if not self._on_gpu:
            return self._clock()
        make: Any = torch.cuda.Event
        event = make(enable_timing=True)
        event.record()
        return event

    def _starting(self, name: str) -> Callable[..., None]:
        def start(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._started[name] = self._mark()

        return start

    def _ending(self, name: str) -> Callable[..., None]:
        def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._marks.append((name, self._started.pop(name), self._mark()))

        return end
