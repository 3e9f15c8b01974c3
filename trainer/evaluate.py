"""Evaluation: the loss on held-out rows, always on the same [MASK] positions.

In: a model and batches on the CPU.
Out: the mean loss a predicted token, still on the device.
Never: moves the random state of training, so that runs with and without it are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from trainer.data import Batch
from trainer.processes import Place, Processes

ALONE = Processes(Place())


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    is_stopping: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
) -> Tensor | None:
    """Mean cross entropy in nats over all predicted tokens, or None if it was interrupted.

    Shapes: -> (). Each process brings its own batches; all get the mean over those of all.
    """
    # In double: a sum over millions of tokens has more digits than a float.
    sums = torch.zeros(2, device=device, dtype=torch.float64)
    count = 0
    model.eval()
    # A model may draw numbers in evaluation too; those of training must not shift by it.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for cpu_batch in batches:
            if is_stopping():
                break
            batch = cpu_batch.to(device)
            with autocast():
                out = model(*batch[:4])
            sums[0] += out.loss * len(batch.predicted)
            count += len(batch.predicted)
    model.train()
    sums[1] += count
    if processes.any(is_stopping()) or not processes.any(count > 0):
        return None
    processes.sum_(sums)
    mean: Tensor = (sums[0] / sums[1]).float()
    return mean
