"""Fixed orthogonal mixers, which spread outliers over channels before a projection.

In: activations (..., channels).
Out: the same activations in another orthonormal basis.
Never: learns, or changes after it is built; signs and permutations are buffers.

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention": block Hadamard H = (+) H_b / sqrt(b), and
DPD = D2 P D1 with signs D and a permutation P.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.config import ModelConfig


def hadamard_matrix(block: int) -> Tensor:
    """Return H_b / sqrt(b), (block, block), by Sylvester's doubling; block is a power of two."""
    h = torch.ones(1, 1, device="cpu")
    while h.shape[0] < block:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h / math.sqrt(block)


def largest_block(channels: int, most: int) -> int:
    """Return the largest power of two that divides channels and is at most `most`."""
    return min(channels & -channels, most)


class BlockHadamard(nn.Module):
    """The product of each block of channels with one Hadamard matrix."""

    matrix: Tensor

    def __init__(self, block: int) -> None:
        super().__init__()
        # Not saved, since it can be made again from the block size.
        self.register_buffer("matrix", hadamard_matrix(block), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each block. Shapes: x (..., channels) -> the same."""
        blocks = torch.unflatten(x, -1, (-1, self.matrix.shape[0]))
        return torch.matmul(blocks, self.matrix).flatten(-2)


class SignedPermutation(nn.Module):
    """DPD: a change of signs, a permutation within each span of channels, and signs again.

    Both sign changes are applied as one, after the permutation. Channels stay within their
    span, so that with the head size as span no two heads are mixed.
    """

    order: Tensor
    inverse: Tensor
    signs: Tensor

    def __init__(self, channels: int, span: int, generator: torch.Generator) -> None:
        super().__init__()
        starts = range(0, channels, span)
        parts = [
            start + torch.randperm(span, generator=generator, device="cpu") for start in starts
        ]
        order = torch.cat(parts)
        first, second = (
            torch.randint(2, (channels,), generator=generator, device="cpu") * 2.0 - 1.0
            for _ in range(2)
        )
        self.register_buffer("order", order)
        self.register_buffer("inverse", order.argsort(), persistent=True)
        self.register_buffer("signs", second * first[order])

    def forward(self, x: Tensor) -> Tensor:
        """Permute channels and change signs. Shapes: x (..., channels) -> the same."""
        apply: Callable[..., Tensor] = _PermuteSigns.apply
        return apply(x, self.order, self.inverse, self.signs)


class _PermuteSigns(torch.autograd.Function):
    """The permutation with a gather in both directions.

    Autograd's own backward would scatter and add. index_select along the last dimension
    takes ten times as long as gather on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, signs: Tensor) -> Tensor:
        ctx.save_for_backward(inverse, signs)
        return x.gather(-1, order.expand(x.shape)).mul_(signs.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inverse, signs = ctx.saved_tensors
        g = grads[0] * signs.to(grads[0].dtype)
        return g.gather(-1, inverse.expand(g.shape)), None, None, None


def make_mixer(
    config: ModelConfig, channels: int, span: int, hadamard: bool, generator: torch.Generator
) -> nn.Module:
    """Build DPD, then block Hadamard, as the configuration and the site have them.

    DPD alone only renames the columns of a projection that is quantized by rows. It has an
    effect because other channels meet in the Hadamard blocks behind it.
    """
    parts: list[nn.Module] = []
    if config.mixers in ("hadamard_dpd", "dpd"):
        parts.append(SignedPermutation(channels, span, generator))
    if hadamard and config.mixers in ("hadamard_dpd", "hadamard"):
        parts.append(BlockHadamard(largest_block(span, config.hadamard_block)))
    return nn.Sequential(*parts)
