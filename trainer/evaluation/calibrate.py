"""Calibration of a checkpoint's encoder on the text that it was trained on.

In: an encoder and its text.
Out: the same encoder, with fixed group means if they lower its loss.
Never: looks at the text of the evaluation, validation or test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from shared.terminal import Say
from trainer.data.masking import Batch
from trainer.errors import BadInput
from trainer.evaluation.text import Batches, Text
from trainer.model import BitNetQDyT
from trainer.model.calibration import freeze_group_means, measure_group_means
from trainer.training.evaluate import Evaluation, evaluate

CALIBRATION_BATCHES = 32

Measure = Callable[[BitNetQDyT, Iterable[Batch]], Mapping[str, Tensor]]
Judge = Callable[[BitNetQDyT, Batches, torch.device], Evaluation]


def evaluate_batches(model: BitNetQDyT, batches: Batches, device: torch.device) -> Evaluation:
    """Evaluate a model, and leave it in evaluation mode.

    Raises:
        BadInput: no token of these batches is to be predicted.
    """
    found = evaluate(model, batches(), device)
    model.eval()
    if found is None:
        raise BadInput("there is nothing to predict in this text")
    return found


def calibrate(
    model: BitNetQDyT,
    text: Text,
    device: torch.device,
    say: Say,
    measure: Measure = measure_group_means,
    judge: Judge = evaluate_batches,
) -> bool:
    """Fix the group means of the norms if that lowers the loss; return True if it does.

    The means are measured on every second of the first batches of the training text, and
    the losses are compared on the others. The text of the evaluation, validation or test,
    is not used for either. measure and judge compute means and losses.
    """
    measured, judged = _halves(text.batches("train", 2 * CALIBRATION_BATCHES))
    before = judge(model, judged, device)
    freeze_group_means(model, measure(model, (b.to(device) for b in measured())))
    after = judge(model, judged, device)
    is_better = bool(after.loss < before.loss)
    if not is_better:
        freeze_group_means(model, {})
    say(
        f"Calibrated on training text: loss {after.loss.item():.4f} where it was "
        f"{before.loss.item():.4f}; {'kept' if is_better else 'not kept'}."
    )
    return is_better


def _halves(batches: Batches) -> tuple[Batches, Batches]:
    """Split batches into those with an even number and those with an odd number."""
    return (
        lambda: itertools.islice(batches(), 0, None, 2),
        lambda: itertools.islice(batches(), 1, None, 2),
    )
