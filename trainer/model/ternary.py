"""Ternary weights with a learned scale, threshold and dead zone for each output row.

In: a weight matrix (out, in) and three columns (out, 1): scale s, threshold t, dead zone delta.
Out: the matrix s * q, with codes q in {-1, 0, +1}, and gradients for all four.
Never: decides when a weight is ternary; that is the linear layer's part.

    u = w - t;   q = 1(u > delta) - 1(u < -delta);   w_hat = s * q

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention" (after TTQ, arXiv:1612.01064, and LSQ+,
arXiv:2004.09576).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.integer import bypassed_to

MIN_DEAD_ZONE = 1e-6
# A share of the scale: a smaller dead zone has the gradient of one of this size.
_LEAST_WINDOW = 0.02


class TernaryStart(NamedTuple):
    """Initial values of the learned columns, each (out, 1); scale is s, not raw_scale."""

    scale: Tensor
    threshold: Tensor
    dead_zone: Tensor


def symmetric_start(w: Tensor) -> TernaryStart:
    """Return t = 0, delta = 0.75 E|w| and s = E[|w| : |w| > delta] for each row.

    Departs from the source, whose start is paper_start: on Gaussian rows this one has
    a signal-to-noise ratio of 7.2 dB where the source's has under 4.
    """
    dead_zone = 0.75 * w.abs().mean(dim=1, keepdim=True)
    threshold = torch.zeros_like(dead_zone)
    return TernaryStart(_mean_kept(w, threshold, dead_zone), threshold, dead_zone)


def paper_start(w: Tensor) -> TernaryStart:
    """Return t at the 30th percentile of |w| and delta = 0.05 median |w| for each row.

    This is the start of the source, which leaves s open; we take the mean magnitude of the
    weights whose code is not 0.
    """
    magnitude = w.abs()
    threshold = magnitude.quantile(0.30, dim=1, keepdim=True)
    dead_zone = 0.05 * magnitude.quantile(0.50, dim=1, keepdim=True)
    return TernaryStart(_mean_kept(w, threshold, dead_zone), threshold, dead_zone)


def _mean_kept(w: Tensor, threshold: Tensor, dead_zone: Tensor) -> Tensor:
    kept = ternary_codes(w, threshold, dead_zone).abs()
    return ((w.abs() * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)).clamp(
        min=MIN_DEAD_ZONE
    )


def inverse_softplus(s: Tensor) -> Tensor:
    """Return log(expm1(s)), in a form that does not overflow for a large s."""
    return s + torch.log(-torch.expm1(-s))


def ternary_codes(w: Tensor, threshold: Tensor, dead_zone: Tensor) -> Tensor:
    """Return codes -1, 0 and +1 in w's dtype. Shapes: w (out, in), the others (out, 1)."""
    u = w - threshold
    delta = dead_zone.clamp(min=MIN_DEAD_ZONE)
    # A comparison in place leaves 0 and 1 in w's dtype and is vectorised on a CPU, where
    # torch.where takes ten times as long.
    below = u.clone().lt_(-delta)
    return u.gt_(delta).sub_(below)


def absmean_ternary(w: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Quantize weights to {-1, 0, +1} with one scale for the whole matrix.

    Shapes: w (out, in) -> codes (out, in), scale (); codes * scale ~ w.

    Source: Ma et al. 2024, arXiv:2402.17764, eq. 1-3. We clamp the scale
    at eps where the paper adds eps, so ordinary weights are scaled exactly.
    """
    scale = w.abs().mean().clamp(min=eps)
    return (w / scale).round().clamp(-1, 1), scale


def straight_through(w: Tensor, quantized: Tensor) -> Tensor:
    """Return exactly the quantized weights, with the gradient of w itself.

    The customary w + (quantized - w).detach() is off by rounding errors, so that a
    row of three levels comes out with seven.
    """
    apply: Callable[..., Tensor] = _StraightThrough.apply
    return apply(w, quantized)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


def learned_ternary(
    w: Tensor,
    raw_scale: Tensor,
    threshold: Tensor,
    dead_zone: Tensor,
    *,
    grad_clip: float | Tensor,
    kept: Tensor | None = None,
    bypass: Tensor | None = None,
) -> Tensor:
    """Return softplus(raw_scale) * q, differentiable in all four tensors.

    Shapes: w (out, in), the three columns (out, 1), kept (out, in) of 1 and 0; a code is 0
    where kept is 0. Each element of the columns' gradients is clipped to +-grad_clip.
    If bypass, () float, is 1 (instead of 0) the result is w, and the columns' gradients 0.
    """
    scale = F.softplus(raw_scale)
    apply: Callable[..., Tensor] = _LearnedTernary.apply
    return apply(w, scale, threshold, dead_zone, grad_clip, kept, bypass)


class _LearnedTernary(torch.autograd.Function):
    """The step function of the codes, with gradients that are defined here.

    With N = in, L = 1 and K = 1(||u| - delta| < delta / 2) / delta, for each row:

        dw     = g                                   (straight through)
        ds     = sum_j g * q / sqrt(N * L)
        dt     = -s * sum_j g * K / sqrt(N)
        ddelta = -s * sum_j g * sign(u) * K / sqrt(N)

    Departure: the width of K is max(delta, 0.02 s) instead of delta. A dead zone of nearly 0
    would otherwise have no weight near its edge, so no gradient, and never grow again: at
    delta = 1e-6 that happens to 98 of 100 rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,
        scale: Tensor,
        threshold: Tensor,
        dead_zone: Tensor,
        grad_clip: float | Tensor,
        kept: Tensor | None,
        bypass: Tensor | None,
    ) -> Tensor:
        codes = ternary_codes(w, threshold, dead_zone)
        if kept is not None:
            codes.mul_(kept.to(codes.dtype))
        # The codes are computed again in backward: saved, they would take as much memory
        # as the weights.
        ctx.save_for_backward(w, scale, threshold, dead_zone, kept, bypass)
        ctx.grad_clip = grad_clip
        return bypassed_to(w, codes.mul_(scale), bypass)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        w, scale, threshold, dead_zone, kept, bypass = ctx.saved_tensors
        delta = dead_zone.clamp(min=MIN_DEAD_ZONE)
        root_n = w.shape[1] ** 0.5
        acted = 1.0 if bypass is None else 1.0 - bypass.to(g.dtype)
        acting = g if kept is None else g * kept.to(g.dtype)
        magnitude = w - threshold
        signed = torch.sign(magnitude).mul_(acting)
        magnitude.abs_()
        # `near` is K times its width; `slope` has the 1 / width.
        width = torch.maximum(delta, _LEAST_WINDOW * scale)
        near = (magnitude - delta).abs_().lt_(0.5 * width)
        slope = -scale / (width * root_n)

        # In place, and with products instead of torch.where, as in ternary_codes.
        grad_scale = magnitude.gt_(delta).mul_(signed).sum(1, keepdim=True) / root_n
        grad_dead_zone = slope * signed.mul_(near).sum(1, keepdim=True)
        grad_threshold = slope * near.mul_(acting).sum(1, keepdim=True)
        clip = ctx.grad_clip
        return (
            g,
            grad_scale.clamp(-clip, clip) * acted,
            grad_threshold.clamp(-clip, clip) * acted,
            grad_dead_zone.clamp(-clip, clip) * acted,
            None,
            None,
            None,
        )
