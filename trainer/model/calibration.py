"""Calibration of QDyT: fixed group means for all tokens, in place of means of each token.

In: a trained encoder and batches of text.
Out: the running mean of each group of each QDyT; set or taken back in one call.
Never: changes a parameter, a buffer or the state dict, so a checkpoint always holds the
uncalibrated encoder.

A calibrated encoder computes another function. Compare the loss on held-out batches before
and after to find out if it is the better one.

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention", QDyT-GN calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.model.qdyt import QDyT

CALIBRATION_MOMENTUM = 0.99


class MaskedBatch(Protocol):
    """The parts of a batch that calibration uses.

    Shapes: input_ids and labels (B, S) int64, attention_mask (B, S) bool.
    """

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def attention_mask(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...


@torch.no_grad()
def measure_group_means(
    model: nn.Module, batches: Iterable[MaskedBatch], momentum: float = CALIBRATION_MOMENTUM
) -> dict[str, Tensor]:
    """Measure the running means of the groups of each QDyT: (groups,) by the module's name.

    The average starts at 0 and is corrected for that, so that each batch has about the
    same weight. Padding is left out. The model runs in evaluation mode and uncalibrated. A
    batch whose means are NaN or infinite is left out.

    Raises:
        ValueError: there was no batch.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, QDyT)}
    means = {name: _Average(momentum) for name in norms}
    visible: list[Tensor | None] = []
    hooks = [
        norm.register_forward_pre_hook(_follow(norm, means[name], visible))
        for name, norm in norms.items()
    ]
    before = {name: norm.group_means for name, norm in norms.items()}
    was_training = model.training
    freeze_group_means(model, {})
    model.eval()
    try:
        for batch in batches:
            visible[:] = [batch.attention_mask]
            model(batch.input_ids, batch.attention_mask, batch.labels)
    finally:
        for hook in hooks:
            hook.remove()
        for name, norm in norms.items():
            norm.group_means = before[name]
        model.train(was_training)
    if not visible:
        raise ValueError("there is no batch to calibrate with")
    return {name: average.value() for name, average in means.items()}


def freeze_group_means(model: nn.Module, means: Mapping[str, Tensor]) -> None:
    """Give each QDyT its fixed means; one without means here computes them for each token."""
    for name, module in model.named_modules():
        if isinstance(module, QDyT):
            found = means.get(name)
            module.group_means = None if found is None else found.to(module.alpha.device)


def group_means(model: nn.Module) -> dict[str, Tensor]:
    """Return the fixed means by the module's name; empty if the model is not calibrated."""
    return {
        name: module.group_means
        for name, module in model.named_modules()
        if isinstance(module, QDyT) and module.group_means is not None
    }


class _Average:
    """An exponential moving average that is corrected for having started at 0.

    If it started at the value of the first batch instead, that batch would have 0.99^31,
    which is 73 % of the total weight after 32 batches.
    """

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._sum: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0

    def add(self, found: Tensor) -> None:
        """Add means (groups,) to the average, unless one of them is NaN or infinite."""
        is_usable = found.isfinite().all()
        share = (1.0 - self._momentum) * is_usable
        self._sum = (1.0 - share) * self._sum + share * torch.where(is_usable, found, 0.0)
        self._weight = (1.0 - share) * self._weight + share

    def value(self) -> Tensor:
        """Return the average, (groups,); NaN if no batch could be used."""
        return torch.as_tensor(self._sum / self._weight)


def _follow(
    norm: QDyT, average: _Average, visible: list[Tensor | None]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def follow(module: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0]
        groups = torch.unflatten(x.float(), -1, (-1, norm.group_size)).mean(-1)
        # The norm of the head gets only the predicted tokens, none of which is padding.
        tokens = groups[visible[0]] if groups.dim() == 3 else groups
        average.add(tokens.mean(0))

    return follow
