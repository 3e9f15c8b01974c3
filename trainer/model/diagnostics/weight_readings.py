"""Readings of quantized weights: occupancy, noise, crowding, drift and flips.

In: linear layers, between two steps.
Out: for each layer a WeightReading of device tensors; their sums are those of the model.
Never: copies anything to the host, or reads a layer that is not quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.diagnostics.flips import FlipMeter, FlipReading
from trainer.model.linear import QuantizedLinear
from trainer.model.readings import decibels, largest_drift
from trainer.model.ternary import MIN_DEAD_ZONE

_CROWDED = 0.1  # share of the dead zone, on both sides of its edge


class WeightReading(NamedTuple):
    """Measurements of one layer.

    sums (7,) are the energies of signal and noise, the numbers of codes 0, +1 and -1, of
    rows that are all 0, and of weights close to an edge of the dead zone. columns are the
    means of scale, threshold and dead zone, and the drifts of scale and dead zone, each ().
    flips compares the codes of the watched steps before.
    """

    weights: int
    rows: int
    is_ternary: bool
    sums: Tensor
    columns: dict[str, Tensor]
    flips: FlipReading | None


@torch.no_grad()
def read_weights(
    linears: Mapping[str, QuantizedLinear], flips: FlipMeter
) -> dict[str, WeightReading]:
    """Take a reading of each quantized layer, at the bits in force and without noise."""
    return {
        name: _read(name, linear, flips)
        for name, linear in linears.items()
        if linear.bits is not None
    }


def weight_metrics(readings: list[WeightReading]) -> dict[str, Tensor]:
    """Return the metrics of one or more layers as one; occupancy only if one is ternary."""
    signal, noise = torch.stack([reading.sums[:2] for reading in readings]).sum(0)
    found = {"weight_sqnr_db": decibels(signal, noise)}
    ternary = [reading for reading in readings if reading.is_ternary]
    if not ternary:
        return found
    sums = torch.stack([reading.sums for reading in ternary]).sum(0)
    weights = sum(reading.weights for reading in ternary)
    found |= {
        "zero_ratio": sums[2] / weights,
        "plus_ratio": sums[3] / weights,
        "minus_ratio": sums[4] / weights,
        "dead_rows_ratio": sums[5] / sum(reading.rows for reading in ternary),
    }
    columns = [reading.columns for reading in ternary]
    found |= {
        name: _join(name, torch.stack([column[name] for column in columns])) for name in columns[0]
    }
    if "dead_zone_mean" in found:
        found["threshold_crowding_ratio"] = sums[6] / weights
    flips = [reading.flips for reading in ternary if reading.flips is not None]
    for metric, values in (
        ("flip_rate_per_step", [flip.rate for flip in flips]),
        ("oscillation_rate_per_step", [flip.oscillation for flip in flips]),
        ("oscillating_ratio", [flip.oscillating for flip in flips]),
    ):
        known = [value for value in values if value is not None]
        if known:
            found[metric] = torch.stack(known).mean()
    return found


def _join(name: str, values: Tensor) -> Tensor:
    return values.max() if name.endswith("_max") else values.mean()


def _read(name: str, linear: QuantizedLinear, flips: FlipMeter) -> WeightReading:
    codes, scale = linear.codes()
    weight = linear.weight
    energy = [weight.square().sum(), (weight - codes * scale).square().sum()]
    counts, columns, flipped = [weight.new_zeros(())] * 5, {}, None
    if linear.is_ternary:
        zero = codes == 0
        occupied = [zero.sum(), (codes > 0).sum(), (codes < 0).sum(), zero.all(dim=1).sum()]
        counts = [*(count.to(weight.dtype) for count in occupied), _crowded(linear)]
        columns = _columns(linear, scale)
        flipped = flips.take(name)
    return WeightReading(
        weights=weight.numel(),
        rows=weight.shape[0],
        is_ternary=linear.is_ternary,
        sums=torch.stack([*energy, *counts]),
        columns=columns,
        flips=flipped,
    )


def _columns(linear: QuantizedLinear, scale: Tensor) -> dict[str, Tensor]:
    columns = linear.columns()
    if columns is None:
        return {"scale_mean": scale.mean()}
    zone = columns.dead_zone.clamp(min=MIN_DEAD_ZONE)
    return {
        "scale_mean": scale.mean(),
        "threshold_mean": columns.threshold.mean(),
        "dead_zone_mean": zone.mean(),
        "scale_drift_max": largest_drift(F.softplus(columns.raw_scale), linear.start_scale),
        "dead_zone_drift_max": largest_drift(zone, linear.start_dead_zone),
    }


def _crowded(linear: QuantizedLinear) -> Tensor:
    """Count the weights closer than a tenth of delta to an edge of the dead zone, ()."""
    columns = linear.columns()
    if columns is None:
        return linear.weight.new_zeros(())
    zone = columns.dead_zone.clamp(min=MIN_DEAD_ZONE)
    distance = ((linear.weight - columns.threshold).abs() - zone).abs()
    return (distance < _CROWDED * zone).sum().to(linear.weight.dtype)
