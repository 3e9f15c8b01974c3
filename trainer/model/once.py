"""Weights that are quantized once for all the forwards of a step.

In: a model, some of whose modules quantize a weight of their own in each forward.
Out: within quantized_once, the same quantized weight in every forward; at its end, one
backward through the quantizers, of the sum of what the forwards' backwards brought.
Never: acts outside of quantized_once, where each forward quantizes anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class QuantizesWeight(nn.Module):
    """A module that uses weight_in_force() in its forward."""

    _held: tuple[Tensor, Tensor] | None = None

    def quantized_weight(self) -> Tensor:
        """The weight as this moment's bits and dice make it, differentiable."""
        raise NotImplementedError

    def weight_in_force(self) -> Tensor:
        """The quantized weight: the one held, or a new one."""
        return self.quantized_weight() if self._held is None else self._held[1]

    def hold(self) -> None:
        """Quantize, and let every forward see this one until release()."""
        quantized = self.quantized_weight()
        self._held = quantized, quantized.detach().requires_grad_()

    def release(self) -> tuple[Tensor, Tensor] | None:
        """The held weight and its gradient, if any forward used it; holds nothing any more."""
        quantized, seen = self._held or (None, None)
        self._held = None
        return (
            None
            if quantized is None or seen is None or seen.grad is None
            else (quantized, seen.grad)
        )


@contextmanager
def quantized_once(model: nn.Module) -> Iterator[None]:
    """Hold all weights; at the end, unless an error ends it, take their gradients on.

    A clip within the quantizers' backward then sees the gradient of the whole step, as
    it would if the step were one batch.
    """
    modules = [module for module in model.modules() if isinstance(module, QuantizesWeight)]
    for module in modules:
        module.hold()
    try:
        yield
    except BaseException:
        for module in modules:
            module.release()
        raise
    released = [pair for module in modules if (pair := module.release()) is not None]
    torch.autograd.backward([q for q, _ in released], [g for _, g in released])
