"""A cache of quantized weights, for all the forwards of one step.

In: a model, some of whose modules quantize their weight in each forward.
Out: within quantized_once, the same quantized weight in every forward; at its end, one
backward through the quantizers with the summed gradients of those forwards.
Never: acts outside of quantized_once, where each forward quantizes again.
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
        """Quantize the weight at the bits in force, with new noise; differentiable."""
        raise NotImplementedError

    def weight_in_force(self) -> Tensor:
        """Return the cached quantized weight, or a new one if none is cached."""
        return self.quantized_weight() if self._held is None else self._held[1]

    def hold(self) -> None:
        """Quantize the weight and use it in every forward until release()."""
        quantized = self.quantized_weight()
        self._held = quantized, quantized.detach().requires_grad_()

    def release(self) -> tuple[Tensor, Tensor] | None:
        """Empty the cache; return the cached weight and its gradient if a forward used it."""
        quantized, seen = self._held or (None, None)
        self._held = None
        return (
            None
            if quantized is None or seen is None or seen.grad is None
            else (quantized, seen.grad)
        )


@contextmanager
def quantized_once(model: nn.Module) -> Iterator[None]:
    """Cache all quantized weights within the context, then backpropagate their gradients.

    The gradient clip inside of the quantizers' backward so acts on the gradient of the
    whole step, as if the step were one batch. After an error nothing is backpropagated.
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
