"""Evaluation: loss and accuracy on held-out rows, always on the same [MASK] positions.

In: a model and batches on the CPU.
Out: means over all predicted tokens, on the device.
Never: changes the random state of training, so that a run with an evaluation has the same
steps as one without; or computes in another precision than float32, so that a checkpoint
has the same loss in the run that wrote it and in any that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.data.masking import Batch
from trainer.training.device import exact_float32
from trainer.training.processes import Place, Processes

ALONE = Processes(Place())


class Evaluation(NamedTuple):
    """The mean cross entropy in nats and the share of right predictions, () each."""

    loss: Tensor
    accuracy: Tensor


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    is_stopping: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
) -> Evaluation | None:
    """Evaluate a model; None if a stop is requested, or if there is nothing to predict.

    Each process passes its own batches, and all get the means over the batches of all.
    """
    # In float64: float32 has too few digits for a sum over millions of tokens.
    sums = torch.zeros(3, device=device, dtype=torch.float64)
    count = 0
    model.eval()
    # If a model draws random numbers in evaluation, those of training must stay the same.
    with torch.random.fork_rng([device] if device.type == "cuda" else []), exact_float32():
        for cpu_batch in batches:
            if is_stopping():
                break
            if not len(cpu_batch.predicted):
                continue
            batch = cpu_batch.to(device)
            out = model(*batch.inputs)
            sums[0] += out.loss.double() * len(batch.predicted)
            sums[1] += out.correct
            count += len(batch.predicted)
    model.train()
    sums[2] += count
    if processes.any(is_stopping()) or not processes.any(count > 0):
        return None
    processes.sum_(sums)
    return Evaluation((sums[0] / sums[2]).float(), (sums[1] / sums[2]).float())
