"""Asynchronous copies of small tensors from the training device to the host.

In: small tensors on the training device, and a label for them.
Out: their numbers, in the order in which they were sent, once they have arrived.
Never: makes the loop wait, except in wait(), which is for the end and for checkpoints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from trainer.training.device import record_event

Label = TypeVar("Label")
Numbers = dict[str, Any]
"""A float for a tensor without dimensions, a list of floats for any other."""


@dataclass(frozen=True)
class _Sent(Generic[Label]):
    label: Label
    shapes: dict[str, torch.Size]
    buffer: Tensor
    copied: Any  # a torch.cuda.Event, which torch leaves untyped, or None on a CPU

    def has_arrived(self) -> bool:
        return self.copied is None or bool(self.copied.query())

    def numbers(self) -> Numbers:
        parts = torch.split(self.buffer, [shape.numel() for shape in self.shapes.values()])
        return {
            name: part.tolist() if len(shape) else part.item()
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


class ScalarCopies(Generic[Label]):
    """The copies under way; each call of send() is one copy, and arrived() polls them.

    On a GPU the values are joined into one vector and copied to pinned memory on that GPU's
    current stream; an event behind the copy tells when it is done. On a CPU they arrive at
    once. Not thread-safe.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sent: deque[_Sent[Label]] = deque()

    def send(self, label: Label, values: Mapping[str, Tensor]) -> None:
        """Start to copy the values as they are now."""
        if not values:
            return
        vector = torch.cat([value.detach().float().reshape(-1) for value in values.values()])
        copied: Any = None
        if self._device.type == "cuda":
            pinned = torch.empty(vector.shape, pin_memory=True)
            vector = pinned.copy_(vector, non_blocking=True)
            copied = record_event(self._device)
        shapes = {name: value.shape for name, value in values.items()}
        self._sent.append(_Sent(label, shapes, vector, copied))

    def arrived(self) -> list[tuple[Label, Numbers]]:
        """Return the numbers that arrived since the last call, oldest first. Does not wait."""
        done = []
        while self._sent and self._sent[0].has_arrived():
            sent = self._sent.popleft()
            done.append((sent.label, sent.numbers()))
        return done

    def wait(self) -> list[tuple[Label, Numbers]]:
        """Return all numbers that were sent and not yet returned; waits for the device."""
        for sent in self._sent:
            if sent.copied is not None:
                sent.copied.synchronize()
        return self.arrived()
