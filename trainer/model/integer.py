"""Symmetric integer weights: Q_b with one scale for each group of a row.

In: weights (..., in) and a number of bits.
Out: the same weights on 2^b - 1 evenly spaced levels, straight-through gradients.
Never: learns anything; the scale is the largest magnitude of its group.

    Q_b(u; step) = step * clip(round(u / step), -L, L),   L = 2^(b-1) - 1

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention", notation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.model.noise import centred_uniform_like

_MIN_STEP = 1e-8


def largest_level(bits: int) -> int:
    """Return L, the largest code of a symmetric quantizer with a number of bits."""
    return (1 << (bits - 1)) - 1


def bypassed_to(w: Tensor, quantized: Tensor, bypass: Tensor | None) -> Tensor:
    """Return quantized, or exactly w if bypass is 1. Works in place.

    Shapes: bypass () float, 0 or 1, on the device; None is like 0.
    """
    # Not torch.where, which takes ten times as long on a CPU.
    return quantized if bypass is None else quantized.lerp_(w, bypass.to(w.dtype))


def integer_codes(
    w: Tensor, bits: int, group: int | None = None, dither: bool = False
) -> tuple[Tensor, Tensor]:
    """Quantize w to codes in [-L, L] and a step for each group.

    Shapes: w (..., in) -> codes (..., in / group, group), step (..., in / group, 1);
    group None means the whole row. dither adds uniform noise of +-step/2 before rounding.
    """
    grouped = torch.unflatten(w, -1, (-1, group or w.shape[-1]))
    level = largest_level(bits)
    # From maximum and minimum, since abs() would allocate another tensor of w's size.
    largest = torch.maximum(grouped.amax(-1, keepdim=True), -grouped.amin(-1, keepdim=True))
    step = (largest / level).clamp(min=_MIN_STEP)
    codes = grouped / step
    if dither:
        codes += centred_uniform_like(codes)
    return codes.round_().clamp_(-level, level), step


def integer_weights(
    w: Tensor,
    bits: int | None,
    *,
    group: int | None = None,
    dither: bool = False,
    bypass: Tensor | None = None,
    idle: tuple[Tensor, ...] = (),
) -> Tensor:
    """Round w to its levels, shape (..., in); the gradient passes straight through to w.

    The result is w itself if bits is None, or if bypass, () float, is 1 (instead of 0).

    The tensors in idle get a gradient of zero. The columns of a ternary weight are idle in
    the int8 stages, and a distributed reduction would wait for a parameter without any
    gradient.
    """
    if bits is None:
        return w
    apply: Callable[..., Tensor] = _IntegerWeights.apply
    return apply(w, bits, group, dither, bypass, *idle)


class _IntegerWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,
        bits: int,
        group: int | None,
        dither: bool,
        bypass: Tensor | None,
        *idle: Tensor,
    ) -> Tensor:
        ctx.idle = [(tensor.shape, tensor.dtype, tensor.device) for tensor in idle]
        codes, step = integer_codes(w, bits, group, dither)
        return bypassed_to(w, codes.mul_(step).flatten(-2), bypass)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        zeros = [torch.zeros(s, dtype=dtype, device=device) for s, dtype, device in ctx.idle]
        return (grads[0], None, None, None, None, *zeros)
