"""What quantization does to the weights and activations, as a few numbers.

In: the quantizing modules of an encoder.
Out: 0-d tensors on the model's device, by metric name.
Never: copies anything to the host, or says what cannot be known: without a ternary
layer there is no occupancy, and before a training step nothing was observed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.model.activation import ActivationQuantizer
from trainer.model.linear import QuantizedLinear
from trainer.model.qdyt import QDyT

TERNARY_INFORMATION_BITS = math.log2(3)


@torch.no_grad()
def weight_diagnostics(linears: Sequence[QuantizedLinear]) -> dict[str, Tensor]:
    """Aggregates over all weights, at the bits in force and without training noise."""
    like = linears[0].weight
    signal, noise = like.new_zeros(()), like.new_zeros(())
    counts, scales = like.new_zeros(4), []
    weights = rows = 0
    for linear in linears:
        codes, scale = linear.codes()
        signal += linear.weight.square().sum()
        noise += (linear.weight - codes * scale).square().sum()
        if linear.is_ternary:
            counts += _count_codes(codes)
            scales.append(scale.mean())
            weights += codes.numel()
            rows += codes.shape[0]
    found = {"quant/weight_bits_mean": like.new_full((), _mean_weight_bits(linears))}
    if any(linear.bits is not None for linear in linears):
        found["quant/weight_sqnr_db"] = 10.0 * torch.log10(signal / noise.clamp(min=1e-30))
    if not scales:
        return found
    return found | {
        "quant/zero_ratio": counts[0] / weights,
        "quant/plus_ratio": counts[1] / weights,
        "quant/minus_ratio": counts[2] / weights,
        "quant/dead_rows_ratio": counts[3] / rows,
        "quant/scale_mean": torch.stack(scales).mean(),
    }


@torch.no_grad()
def activation_diagnostics(
    quantizers: Sequence[ActivationQuantizer], norms: Sequence[QDyT]
) -> dict[str, Tensor]:
    """What the last training forward saw on its sampled rows, averaged over the sites."""
    found = {}
    if overloads := [q.overload_rate for q in quantizers if q.bits is not None]:
        found["quant/activation_overload_rate"] = _mean(overloads)
    if norms:
        found["quant/tanh_saturation_ratio"] = _mean([norm.tanh_saturation for norm in norms])
    return found


@torch.no_grad()
def precision_diagnostics(
    linears: Sequence[QuantizedLinear], quantizers: Sequence[ActivationQuantizer]
) -> dict[str, Tensor]:
    """Activation bits in force, and the share of quantizers that QDrop bypassed last."""
    in_force = [32 if quantizer.bits is None else quantizer.bits for quantizer in quantizers]
    bits = sum(in_force) / len(in_force)
    bypassed = [linear.bypassed for linear in linears]
    bypassed += [quantizer.bypassed for quantizer in quantizers]
    return {
        "quant/activation_bits_mean": bypassed[0].new_full((), bits),
        "quant/bypassed_ratio": _mean(bypassed),
    }


def _mean_weight_bits(linears: Sequence[QuantizedLinear]) -> float:
    """Mean over weights; a ternary weight carries log2(3) bits."""
    bits = sum(linear.weight.numel() * _information_bits(linear) for linear in linears)
    return bits / sum(linear.weight.numel() for linear in linears)


def _information_bits(linear: QuantizedLinear) -> float:
    if linear.bits is None:
        return torch.finfo(linear.weight.dtype).bits
    return TERNARY_INFORMATION_BITS if linear.is_ternary else linear.bits


def _count_codes(codes: Tensor) -> Tensor:
    """How many codes (out, in) are 0, +1 and -1, and how many rows are all 0: (4,)."""
    zero = codes == 0
    return torch.stack(
        [zero.sum(), (codes > 0).sum(), (codes < 0).sum(), zero.all(dim=1).sum()]
    ).float()


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
