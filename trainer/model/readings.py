"""Readings: measurements that a module takes of itself in observed forwards.

In: sampled activations, queries and keys of the heads, all inside of a training forward.
Out: tensors on the device, kept in the module until the next observed forward.
Never: taken in other forwards, where they would only cost time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# A channel is dead if its range is at most this share of the mean range of its site.
_DEAD_SHARE = 1e-3


class ObservedModule(nn.Module):
    """A module with readings by name: 0-d tensors, or one value for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.observing = False
        self.readings: dict[str, Tensor] = {}


def metric_path(module_name: str) -> str:
    """Return the name that a module has in metrics: layers.3.ffn.up for blocks.3.ffn.up."""
    first, dot, rest = module_name.partition(".")
    return f"layers{dot}{rest}" if first == "blocks" else module_name


@torch.no_grad()
def quantizer_readings(
    sample: Tensor, steps: Tensor, level: int, rho: Tensor, start_rho: Tensor
) -> dict[str, Tensor]:
    """Measure how well the levels of a site fit a sample of its input.

    Shapes: sample (N, channels), steps (channels,), rho and start_rho (ranges,); level
    is L. Rounding is to nearest, as in evaluation.
    """
    scaled = sample / steps
    codes = scaled.round().clamp_(-level, level)
    signal, noise = sample.square().sum(), (sample - codes * steps).square().sum()
    counts = code_counts(codes, level)
    return {
        "overload_ratio": (scaled.abs() > level).float().mean(),
        "sqnr_db": decibels(signal, noise),
        "codebook_utilization_ratio": entropy_bits(counts) / math.log2(2 * level + 1),
        "levels_used_ratio": (counts > 0).float().mean(),
        "dead_channels_ratio": (rho <= _DEAD_SHARE * rho.mean()).float().mean(),
        "range_drift": largest_drift(rho, start_rho),
    }


@torch.no_grad()
def attention_readings(q: Tensor, k: Tensor, key_mask: Tensor | None) -> dict[str, Tensor]:
    """Measure scales, largest logit and mean entropy in nats of each head: (H,) each.

    The scales are root mean squares of q and k. Shapes: q, k (B, H, S, D), key_mask
    (B, 1, 1, S) bool or None. Only the first row of the batch is used, since the logits of
    all rows would take the memory that fused attention saves.
    """
    q, k = q[:1].float(), k[:1].float()
    logits = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    if key_mask is not None:
        logits = torch.where(key_mask[:1], logits, -torch.inf)
    weights = torch.softmax(logits, dim=-1)
    entropy = torch.special.entr(weights).sum(-1)
    return {
        "q_scale": q.square().mean((0, 2, 3)).sqrt(),
        "k_scale": k.square().mean((0, 2, 3)).sqrt(),
        "logit_max": logits.amax((0, 2, 3)),
        "entropy_nats": entropy.mean((0, 2)),
    }


def code_counts(codes: Tensor, level: int) -> Tensor:
    """Count the codes -level..level. Shapes: -> (2 level + 1,) float."""
    index = (codes.flatten() + level).long()
    # bincount would wait for the device to learn the size of its result.
    counts = torch.zeros(2 * level + 1, dtype=torch.float32, device=codes.device)
    return counts.scatter_add_(0, index, torch.ones_like(index, dtype=torch.float32))


def entropy_bits(counts: Tensor) -> Tensor:
    """Return the entropy of a distribution in bits, (), from its counts (n,)."""
    p = counts / counts.sum().clamp(min=1)
    nats: Tensor = torch.special.entr(p).sum()
    return nats / math.log(2.0)


def decibels(signal: Tensor, noise: Tensor) -> Tensor:
    """Return 10 log10(signal / noise) of two energies; noise is at least 1e-30 of the signal."""
    least = (1e-30 * signal).clamp(min=1e-37)
    return 10.0 * torch.log10(signal.clamp(min=1e-37) / noise.clamp(min=least))


def largest_drift(now: Tensor, start: Tensor) -> Tensor:
    """Return max |log(now / start)| over positive values of one shape, ()."""
    least = torch.finfo(now.dtype).tiny
    ratio = torch.log(now.clamp(min=least)) - torch.log(start.clamp(min=least))
    return ratio.abs().max()
