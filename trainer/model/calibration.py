"""Calibration of QDyT: one mean a group for all tokens, in place of one a token.

In: a trained encoder and batches of text that it was not trained on.
Out: the running mean of each group of each QDyT; set or taken back in one call.
Never: changes a parameter, a buffer or the state dict, so the uncalibrated encoder
is always what a checkpoint has.

A calibrated encoder computes another function. Whether it is the better one only a
validation loss before and after can tell.

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
    """What is used of a batch: ids and labels (B, S) int64, attention_mask (B, S) bool."""

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
    """Running means of the groups of each QDyT, (groups,) each, by the module's name.

    The average starts at 0 and is corrected for that, so that each batch has about the
    same weight. It is taken over tokens that are not padding, in evaluation mode, with the
    means a token in force throughout. A batch whose means are no finite numbers is left out.

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
    """Give each QDyT its means; one that is not named goes back to means a token."""
    for name, module in model.named_modules():
        if isinstance(module, QDyT):
            found = means.get(name)
            module.group_means = None if found is None else found.to(module.alpha.device)


def group_means(model: nn.Module) -> dict[str, Tensor]:
    """The means that are frozen now, by the module's name; none if it is not calibrated."""
    return {
        name: module.group_means
        for name, module in model.named_modules()
        if isinstance(module, QDyT) and module.group_means is not None
    }


class _Average:
    """An exponential moving average that is corrected for having started at 0.

    An average that starts at its first batch gives it 0.99^31, 73 % of the weight of 32.
    """

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._sum: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0

    def add(self, found: Tensor) -> None:
        """Take in means (groups,), unless one of them is no finite number."""
        is_usable = found.isfinite().all()
        share = (1.0 - self._momentum) * is_usable
        self._sum = (1.0 - share) * self._sum + share * torch.where(is_usable, found, 0.0)
        self._weight = (1.0 - share) * self._weight + share

    def value(self) -> Tensor:
        """The average, (groups,); NaN if no batch could be used."""
        return torch.as_tensor(self._sum / self._weight)


def _follow(
    norm: QDyT, average: _Average, visible: list[Tensor | None]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def follow(module: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0]
        groups = torch.unflatten(x.float(), -1, (-1, norm.group_size)).mean(-1)
        # The head's norm sees the predicted tokens alone, and none of them is padding.
        tokens = groups[visible[0]] if groups.dim() == 3 else groups
        average.add(tokens.mean(0))

    return follow
