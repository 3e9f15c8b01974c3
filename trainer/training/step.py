"""The gradients of one optimizer step: forward and backward of its micro batches.

In: micro batches on the CPU, and the network that they go through.
Out: gradients, summed over micro batches and processes, and this process's part of the loss.
Never: reads a number from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.data.masking import Batch
from trainer.model.weight_cache import quantized_once
from trainer.processes import Processes
from trainer.training.phases import BACKWARD, FORWARD, StepParts
from trainer.training.work_clock import WorkClock


class Stepper:
    """Forward, backward and update of a model, in a precision and in several processes.

    network is the model as wrapped for several processes; forwards go through it. is_empty is
    true if no process had a token to predict in the last step. Not thread-safe.
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
        # Without torch.compile: QDrop's probability and the bits are Python values, and each
        # change of them would compile again, for minutes on a CPU. Compiling the learned
        # ternary weight alone would save 4 % of a step of the small size there.
        self.network = processes.wrap(model)
        # bfloat16 has the exponents of float32 and needs no scaling.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
        self.work, self.parts = WorkClock(device), StepParts(device)
        self.is_empty = False

    def begin(self) -> None:
        """Begin a step, before it waits for data."""
        self.work.begin()
        self.parts.begin()

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of forward passes, which sets their precision."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def accumulate_gradients(self, micro_batches: Sequence[Batch]) -> Tensor:
        """Add up gradients of the mean loss; return this process's part of the loss.

        Each predicted token has the same weight, in any micro batch and process, so the step
        equals that of one batch with all the rows. The parts of all processes add up to the
        mean loss in nats. Shapes: -> (), on the device.
        """
        world_size = self.processes.world_size
        # If nothing is predicted, the loss and its gradients are 0.
        predicted = sum(len(b.predicted) + b.predicted_elsewhere for b in micro_batches)
        self.is_empty = not predicted
        predicted = max(1, predicted)
        # DDP divides gradients by world_size, so the loss is multiplied by it in advance.
        whole = sum(len(b.predicted) for b in micro_batches) / predicted * world_size
        # Multiplied by the scaler on the device: get_scale() would wait for the device.
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
                    self.parts.mark(FORWARD)
                    if is_last:
                        self.work.end()
                    self.scaler.scale(loss * share * world_size).backward()
                    self.parts.mark(BACKWARD)
                part += loss.detach() * share
        return part

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer step, clear the gradients, and average ranges over processes.

        If is_empty, the weights stay as they are: the optimizer would otherwise move them by
        its averages of earlier gradients.
        """
        if not self.is_empty:
            self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self.processes.mean_(moving_ranges(self.model))


def leave_out_a_ruinous_step(optimizer: torch.optim.Optimizer, grad_norm: Tensor) -> None:
    """Make the optimizer skip its next step if the norm of the gradients is not finite.

    This is decided on the device: fused optimizers read the flag found_inf, which in fp16
    the scaler sets instead. The host learns of it when the norm is logged.
    """
    cast(Any, optimizer).found_inf = (~grad_norm.isfinite()).float()


def moving_ranges(model: nn.Module) -> list[Tensor]:
    """Return the buffers with ranges of activations, which processes average."""
    return [buffer for name, buffer in model.named_buffers() if name.endswith("rho")]
