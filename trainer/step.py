"""One optimizer step's gradients: forward and backward of its micro batches.

In: micro batches on the CPU, and the network that they go through.
Out: gradients, summed over micro batches and processes, and this process's part of the loss.
Never: reads a number from the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.data import Batch
from trainer.model.once import quantized_once
from trainer.processes import Processes
from trainer.work_clock import WorkClock

Autocast = Callable[[], AbstractContextManager[object]]


class Stepper:
    """How a model is trained: in which precision, in how many processes.

    network is what is called; model, within it, is what is told the loss scale. is_empty says
    that in the last step no process had a token to predict.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        precision: torch.dtype | None,
        processes: Processes,
    ) -> None:
        self.model, self.device = model, device
        self.precision, self.processes = precision, processes
        # Not compiled: QDrop's probability and the bits are Python values that change, and
        # each change would compile anew, for minutes on a CPU. The learned ternary weight
        # alone, compiled, would take 4 % off a step of small there.
        self.network = processes.wrap(model)
        # bfloat16 has the exponents of float32 and needs no scaling.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
        self.work = WorkClock(device)
        self.is_empty = False

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of forward passes."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def accumulate_gradients(self, micro_batches: Sequence[Batch]) -> Tensor:
        """Gradients of the mean loss over all predicted tokens; this process's part of it.

        Each token counts the same, in whichever micro batch and process it is, so the step
        is that of one batch with all their rows. The parts of all processes add up to the
        mean loss. Shapes: -> (), on the device.
        """
        world_size = self.processes.world_size
        # Where nothing is predicted the loss is 0, and so are its gradients.
        predicted = sum(len(b.predicted) + b.predicted_elsewhere for b in micro_batches)
        self.is_empty = not predicted
        predicted = max(1, predicted)
        # The mean that DDP takes over the processes is undone in advance.
        whole = sum(len(b.predicted) for b in micro_batches) / predicted * world_size
        # As a tensor of the scaler's making: its get_scale() would wait for the device.
        self.model.set_loss_scale(self.scaler.scale(torch.full((), whole, device=self.device)))
        part = torch.zeros((), device=self.device)
        with quantized_once(self.model) if len(micro_batches) > 1 else nullcontext():
            for number, cpu_batch in enumerate(micro_batches, 1):
                is_last = number == len(micro_batches)
                batch = cpu_batch.to(self.device)
                share = len(batch.predicted) / predicted
                with nullcontext() if is_last else self.processes.no_sync(self.network):
                    with self.autocast():
                        loss = self.network(*batch.inputs).loss
                    if is_last:
                        self.work.end()
                    self.scaler.scale(loss * share * world_size).backward()
                part += loss.detach() * share
        return part

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the step that the gradients say, and clear them.

        A step that is_empty, with nothing to predict in it, leaves the weights as they are:
        the optimizer would otherwise move them by what it remembers of other steps.
        """
        if not self.is_empty:
            self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self.processes.mean_(moving_ranges(self.model))


def leave_out_a_ruinous_step(optimizer: torch.optim.Optimizer, grad_norm: Tensor) -> None:
    """Keep the next step from being taken if the norm of its gradients is no number.

    Decided on the device: fused optimizers read this flag, which with a loss scale the
    scaler sets instead. The host learns of it when the norm is logged.
    """
    cast(Any, optimizer).found_inf = (~grad_norm.isfinite()).float()


def moving_ranges(model: nn.Module) -> list[Tensor]:
    """The buffers that follow the data, which processes average."""
    return [buffer for name, buffer in model.named_buffers() if name.endswith("rho")]
