"""Distillation in a training run: a teacher beside the model, or none.

In: the model, its teacher, and the step.
Out: gradients that include the teacher's loss; metrics of that loss.
Never: changes the value of the model's own loss, an evaluation, or the model's state.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.model import BitNetQDyT
from trainer.model.encoder import MaskedLMOutput
from trainer.model.schedule import last_trained, teacher_weight
from trainer.model.teacher import AveragedTeacher, Teacher, divergence
from trainer.training.processes import Processes

AVERAGED = "ema"


class Distillation:
    """The teacher's part of a training run; this base class is for a run without one."""

    def begin_step(self, step: int, total_steps: int) -> None:
        """Prepare for the forwards of optimizer step number `step`, counted from 0."""

    def end_step(self, step: int) -> None:
        """Update the teacher after an optimizer step; step counts those done."""

    def numbers(self, processes: Processes) -> dict[str, Tensor]:
        """Return metrics of the step, on the device. All processes have to call this."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of the teacher that a checkpoint keeps."""
        return {}

    def load(self, state: Mapping[str, Tensor], step: int, total_steps: int) -> None:
        """Restore what state() returned after `step` optimizer steps."""


class TeacherDistillation(Distillation):
    """A teacher, whose loss adds weight * divergence to the gradients of training forwards.

    final_weight is the weight at the last step. Each process has a teacher of its own, which
    the wrapper for several processes does not know of. Since weights and ranges are the same
    in all processes, so are these teachers. Not thread-safe.
    """

    def __init__(
        self, model: BitNetQDyT, teacher: Teacher, temperature: float, final_weight: float
    ) -> None:
        self.model, self.teacher = model, teacher
        self.temperature, self.final_weight = temperature, final_weight
        self.weight = 0.0
        self._device = next(model.parameters()).device
        self._start_sum()
        model.register_forward_hook(self._add_teacher_loss)

    def begin_step(self, step: int, total_steps: int) -> None:
        self.weight = teacher_weight(step, total_steps, self.final_weight)
        self.teacher.apply_schedule(step, total_steps)
        self._start_sum()

    def end_step(self, step: int) -> None:
        self.teacher.follow(self.model, step)

    def numbers(self, processes: Processes) -> dict[str, Tensor]:
        positions = torch.full((), float(self._positions), device=self._device)
        sums = processes.sum_(torch.stack([self._sum, positions]))
        return {
            "train/teacher_loss": sums[0] / sums[1],
            "train/teacher_weight": torch.full((), self.weight, device=self._device),
        }

    def state(self) -> dict[str, Tensor]:
        is_averaged = isinstance(self.teacher, AveragedTeacher)
        return self.teacher.state_dict() if is_averaged else {}

    def load(self, state: Mapping[str, Tensor], step: int, total_steps: int) -> None:
        if not isinstance(self.teacher, AveragedTeacher):
            return
        # As in restore(): the weights do not tell the stage of the last step done.
        self.teacher.apply_schedule(last_trained(step), total_steps)
        if state:
            self.teacher.load_state_dict(state)
        else:
            self.teacher.encoder.load_state_dict(self.model.state_dict())

    def _start_sum(self) -> None:
        self._sum, self._positions = torch.zeros((), device=self._device), 0

    def _add_teacher_loss(
        self, model: BitNetQDyT, batch: tuple[Tensor, ...], out: MaskedLMOutput
    ) -> MaskedLMOutput | None:
        if not model.training:
            return None
        apart = divergence(out.logits, self.teacher.logits(*batch), self.temperature)
        self._sum += apart.detach() * len(out.logits)
        self._positions += len(out.logits)
        # The gradient is that of both losses, and the value is the cross entropy alone, so
        # that train/loss can be compared with runs without a teacher.
        pull = self.weight * apart
        return out._replace(loss=out.loss + (pull - pull.detach()))
