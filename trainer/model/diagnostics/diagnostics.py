"""Diagnostics of quantization, for the whole encoder and for each layer.

In: an encoder, between backward and the optimizer's step.
Out: 0-d tensors on the model's device, by metric name.
Never: copies anything to the host, or makes up a number that was not measured: without a
ternary layer there is no occupancy, and without an observed forward no overload.

Metrics of the whole model are quant/NAME; those of a layer are quant/layers.3.ffn.up/NAME.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trainer.model.activation import ActivationQuantizer
from trainer.model.block import Attention, Block
from trainer.model.config import ModelConfig
from trainer.model.diagnostics.flips import FlipMeter
from trainer.model.diagnostics.gradients import gradient_metrics
from trainer.model.diagnostics.histograms import Histogram, collect_histograms
from trainer.model.diagnostics.weight_readings import read_weights, weight_metrics
from trainer.model.encoder import BitNetQDyT
from trainer.model.linear import QuantizedLinear, linear_layers
from trainer.model.qdyt import QDyT
from trainer.model.readings import ObservedModule, largest_drift, metric_path

M = TypeVar("M", bound=nn.Module)

TERNARY_INFORMATION_BITS = math.log2(3)
_FLOAT_BITS = 32

# Readings of many sites that are joined into one metric, as {reading: metric}: by their mean
# or by their maximum. Readings of attention have one value for each head.
_MEANS: dict[type[ObservedModule], dict[str, str]] = {
    ActivationQuantizer: {
        "overload_ratio": "activation_overload_rate",
        "sqnr_db": "activation_sqnr_db",
        "codebook_utilization_ratio": "codebook_utilization_ratio",
        "levels_used_ratio": "levels_used_ratio",
        "dead_channels_ratio": "dead_channels_ratio",
    },
    QDyT: {
        "tanh_saturation_ratio": "tanh_saturation_ratio",
        "pact_clip_ratio": "pact_clip_ratio",
    },
    Attention: {
        "q_scale": "q_scale_mean",
        "k_scale": "k_scale_mean",
        "entropy_nats": "attention_entropy_nats",
    },
}
_MAXIMA: dict[type[ObservedModule], dict[str, str]] = {
    ActivationQuantizer: {"range_drift": "activation_range_drift_max"},
    Attention: {"logit_max": "attention_logit_max"},
}


class Diagnostics:
    """The diagnostics of one encoder, which a training loop or an evaluation holds.

    The encoder does not know of them. Not thread-safe.
    """

    def __init__(self, model: BitNetQDyT) -> None:
        self._model = model
        self._flips = FlipMeter()

    def observe(self, on: bool) -> None:
        """Switch readings of activations and heads in training forwards on or off.

        They cost a few percent of a step, so the training loop switches them on only in
        steps whose diagnostics it reads. Off at first.
        """
        for module in _modules(self._model, ObservedModule).values():
            module.observing = on
            if on:  # a module that takes none in this step would show those of an older one
                module.readings = {}

    def watch_codes(self, step: int) -> None:
        """Record the ternary codes of this step, from which collect() counts flips.

        Call it in each of the consecutive steps up to that of the diagnostics.
        """
        self._flips.watch(linear_layers(self._model), step)

    @torch.no_grad()
    def collect(self, detail: bool = False) -> dict[str, Tensor]:
        """Return the diagnostics: 0-d tensors on the device, by metric name.

        detail adds those of each layer. A metric that was not measured is left out:
        occupancy without a ternary layer, readings of activations before an observed
        forward, shares of gradients before a backward, and flips without two watched steps
        in a row.
        """
        model, linears = self._model, linear_layers(self._model)
        quantizers = _modules(model, ActivationQuantizer)
        weights = read_weights(linears, self._flips)
        found = _precision(linears.values(), quantizers.values())
        if weights:
            found |= weight_metrics(list(weights.values()))
        found |= _joined_readings(model)
        found |= _drifts(model, model.config)
        found |= gradient_metrics(model)
        named = {f"quant/{name}": value for name, value in found.items()}
        if detail:
            for name, linear in linears.items():
                named |= _under(name, _in_force(linear, _information_bits(linear)))
            for name, quantizer in quantizers.items():
                named |= _under(name, _in_force(quantizer, quantizer.bits or _FLOAT_BITS))
            for name, reading in weights.items():
                named |= _under(name, weight_metrics([reading]))
            named |= _detailed_readings(model)
        return named

    def histograms(self, detail: bool = False) -> dict[str, Histogram]:
        """Return histograms of scales and latent weights by name; see histograms.py."""
        return collect_histograms(self._model, detail)


def _modules(model: nn.Module, kind: type[M]) -> dict[str, M]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def _under(module_name: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    path = metric_path(module_name)
    return {f"quant/{path}/{name}": value for name, value in values.items()}


def _joined_readings(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    joins: Any = ((_MEANS, torch.mean), (_MAXIMA, torch.max))
    for table, join in joins:
        for kind, names in table.items():
            taken = [module.readings for module in _modules(model, kind).values()]
            for own, joined in names.items():
                values = [readings[own].flatten() for readings in taken if own in readings]
                if values:
                    found[joined] = join(torch.cat(values))
    return found


def _detailed_readings(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, module in _modules(model, ObservedModule).items():
        for reading, value in module.readings.items():
            if value.dim() == 0:
                found |= _under(name, {reading: value})
            else:
                heads = enumerate(value)
                found |= _under(name, {f"head_{head}_{reading}": one for head, one in heads})
    return found


def _drifts(model: nn.Module, config: ModelConfig) -> dict[str, Tensor]:
    """Measure how far the learned alpha and zeta are from their configured start."""
    norms = _modules(model, QDyT).values()
    blocks = _modules(model, Block).values()
    learned = [zeta for block in blocks for zeta in block.zetas()]
    zetas = torch.stack(learned)
    found = {"zeta_drift_max": _drift_from(zetas, config.skip_init_scale / config.layers**0.5)}
    if norms:
        alphas = torch.stack([norm.alpha for norm in norms])
        found["alpha_drift_max"] = _drift_from(alphas, config.alpha_target)
    return found


def _drift_from(values: Tensor, start: float) -> Tensor:
    return largest_drift(values.abs(), torch.full_like(values, start))


def _precision(
    linears: Iterable[QuantizedLinear], quantizers: Iterable[ActivationQuantizer]
) -> dict[str, Tensor]:
    """Return the mean bits in force, and the share of quantizers that QDrop bypassed last."""
    linears, quantizers = list(linears), list(quantizers)
    switches = [*(linear.bypassed for linear in linears), *(q.bypassed for q in quantizers)]
    bypassed = torch.stack(switches)
    weights = [(linear.weight.numel(), _information_bits(linear)) for linear in linears]
    in_force = [quantizer.bits or _FLOAT_BITS for quantizer in quantizers]
    return {
        "weight_bits_mean": bypassed.new_full(
            (), sum(n * bits for n, bits in weights) / sum(n for n, _ in weights)
        ),
        "activation_bits_mean": bypassed.new_full((), sum(in_force) / len(in_force)),
        "bypassed_ratio": bypassed.mean(),
    }


def _in_force(module: QuantizedLinear | ActivationQuantizer, bits: float) -> dict[str, Tensor]:
    return {"bits": module.bypassed.new_full((), bits), "bypassed": module.bypassed}


def _information_bits(linear: QuantizedLinear) -> float:
    """Return the bits that one weight carries; log2(3) for a ternary one."""
    if linear.bits is None:
        return _FLOAT_BITS
    return TERNARY_INFORMATION_BITS if linear.is_ternary else linear.bits
