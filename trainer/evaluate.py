"""Evaluation: loss and accuracy on held-out rows, always on the same [MASK] positions.

In: a model and batches on the CPU.
Out: means over all predicted tokens, still on the device.
Never: moves the random state of training, so that runs with and without it are alike; or
computes in another precision than float32, whatever training has: the loss of a checkpoint
is the same in the run that wrote it and in any that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.data import Batch
from trainer.device import exact_float32
from trainer.processes import Place, Processes

ALONE = Processes(Place())


class Evaluation(NamedTuple):
    """Mean cross entropy in nats and share of right predictions, () each."""

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
    """Means over all predicted tokens; None if interrupted, or with nothing to predict.

    Each process brings its own batches; all get the means over those of all.
    """
    # In double: a sum over millions of tokens has more digits than a float.
    sums = torch.zeros(3, device=device, dtype=torch.float64)
    count = 0
    model.eval()
    # A model may draw numbers in evaluation too; those of training must not shift by it.
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
