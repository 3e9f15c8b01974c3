"""Histograms of latent weights and of scales.

In: the linear layers of an encoder.
Out: edges and counts as tensors on the device.
Never: waits for the device; the span of a histogram is computed there too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.linear import linear_layers
from trainer.model.readings import metric_path

BINS = 64


class Histogram(NamedTuple):
    """Counts (n,) between edges (n + 1,), which rise evenly from smallest to largest value."""

    edges: Tensor
    counts: Tensor


@torch.no_grad()
def collect_histograms(model: nn.Module, detail: bool) -> dict[str, Histogram]:
    """Collect quant/latent_weights and quant/scales; with detail, those of each layer too.

    Only layers that are ternary now and learn their scale have a histogram of scales.
    """
    linears = linear_layers(model)
    weights = {name: linear.weight for name, linear in linears.items()}
    scales = {
        name: F.softplus(columns.raw_scale)
        for name, linear in linears.items()
        if linear.is_ternary and (columns := linear.columns()) is not None
    }
    found = {}
    for kind, values in (("latent_weights", weights), ("scales", scales)):
        if values:
            found[f"quant/{kind}"] = histogram(list(values.values()))
        if detail:
            for name, value in values.items():
                found[f"quant/{metric_path(name)}/{kind}"] = histogram([value])
    return found


def histogram(parts: list[Tensor], bins: int = BINS) -> Histogram:
    """Count the elements of all parts in one histogram; equal values share one bin.

    Shapes: each part any -> edges (bins + 1,), counts (bins,), both float32.
    """
    low = torch.stack([part.amin() for part in parts]).amin().float()
    high = torch.stack([part.amax() for part in parts]).amax().float()
    # If all values are equal the bins would have a width of 0.
    width = (high - low).clamp(min=1e-6 * high.abs().clamp(min=1e-6)) / bins
    counts = torch.zeros(bins, device=low.device)
    for part in parts:
        # torch.histc needs its span on the host, and bincount waits for the size of its result.
        index = ((part.flatten() - low) / width).long().clamp_(0, bins - 1)
        counts.scatter_add_(0, index, torch.ones_like(index, dtype=counts.dtype))
    steps = torch.arange(bins + 1, device=low.device)
    return Histogram(low + width * steps, counts)
