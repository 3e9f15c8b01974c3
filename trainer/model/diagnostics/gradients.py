"""Gradient metrics: shares of the norm, and the share of parameters without a gradient.

In: an encoder after backward, before its gradients are cleared.
Out: 0-d tensors on the device.
Never: counts an idle parameter as one without a gradient: a column of a layer that is not
ternary yet, or the clip of a norm, which has a gradient only where something is clipped.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.model.linear import COLUMN_NAMES, QuantizedLinear, linear_layers
from trainer.model.qdyt import QDyT

_KINDS = {
    "weight": "gradient_share_weight_ratio",
    "raw_scale": "gradient_share_scale_ratio",
    "threshold": "gradient_share_threshold_ratio",
    "dead_zone": "gradient_share_dead_zone_ratio",
}


@torch.no_grad()
def gradient_metrics(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradient metrics by name; empty before the first backward.

    A share is that of the squared norm of all gradients. gradient_missing_ratio counts
    parameter tensors whose gradient is absent or 0 everywhere.
    """
    norms = _norms(model)
    if not norms:
        return {}
    linears = linear_layers(model)
    values = torch.stack(list(norms.values()))
    total = values.square().sum().clamp(min=1e-30)
    found = {}
    for kind, metric in _KINDS.items():
        names = [f"{linear}.{kind}" for linear in linears]
        squares = [norms[name].square() for name in names if name in norms]
        if squares:
            found[metric] = torch.stack(squares).sum() / total
    active = _active(model, linears)
    reached = [norms[name] for name in active if name in norms]
    missing = len(active) - (torch.stack(reached) > 0).sum()
    found["gradient_missing_ratio"] = missing / len(active)
    return found


def _norms(model: nn.Module) -> dict[str, Tensor]:
    graded = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    if not graded:
        return {}
    # One launch on an accelerator; a norm for each parameter would take hundreds.
    return dict(zip(graded, torch._foreach_norm(list(graded.values())), strict=True))


def _active(model: nn.Module, linears: Mapping[str, QuantizedLinear]) -> list[str]:
    idle = {
        f"{name}.{column}"
        for name, linear in linears.items()
        if not linear.is_ternary
        for column in COLUMN_NAMES
    }
    idle |= {f"{name}.raw_clip" for name, m in model.named_modules() if isinstance(m, QDyT)}
    return [name for name, p in model.named_parameters() if p.requires_grad and name not in idle]
