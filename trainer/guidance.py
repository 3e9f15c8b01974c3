"""Guidance: a teacher that the model being trained is drawn to, or none.

In: the model, its teacher, and the step.
Out: gradients with the teacher's share; how far model and teacher are apart.
Never: changes the value of the loss, an evaluation, or what the model's state holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint import read_checkpoint
from trainer.errors import BadInput
from trainer.model import BitNetQDyT
from trainer.model.encoder import MaskedLMOutput
from trainer.model.teacher import AveragedTeacher, Teacher, divergence
from trainer.processes import Processes
from trainer.rebuild import rebuild_model
from trainer.schedule import last_trained, teacher_weight

AVERAGED = "ema"


class Guidance:
    """A run without a teacher: nothing to do, to report or to keep."""

    def begin_step(self, step: int, total_steps: int) -> None:
        """What follows belongs to the optimizer step of this number, from 0."""

    def end_step(self, step: int) -> None:
        """So many optimizer steps are done."""

    def numbers(self, processes: Processes) -> dict[str, Tensor]:
        """Metrics of the step, on the device. All processes have to ask for them."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep of the teacher."""
        return {}

    def load(self, state: Mapping[str, Tensor], step: int, total_steps: int) -> None:
        """Go on after so many steps, with what state() gave then."""


class TeacherGuidance(Guidance):
    """Adds weight * divergence to what the model's training forwards are derived from.

    final_weight is the weight at the last step. The teacher is no part of the model, so a
    wrapper for several processes does not see it: each has its own, and since weights and
    ranges are the same in all, so are averages of them. Not thread-safe.
    """

    def __init__(
        self, model: BitNetQDyT, teacher: Teacher, temperature: float, final_weight: float
    ) -> None:
        self.model, self.teacher = model, teacher
        self.temperature, self.final_weight = temperature, final_weight
        self.weight = 0.0
        self._device = next(model.parameters()).device
        self._start_sum()
        model.register_forward_hook(self._guide)

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
        # As in restore(): the stage of the last step done is not in the weights.
        self.teacher.apply_schedule(last_trained(step), total_steps)
        if state:
            self.teacher.load_state_dict(state)
        else:
            self.teacher.encoder.load_state_dict(self.model.state_dict())

    def _start_sum(self) -> None:
        self._sum, self._positions = torch.zeros((), device=self._device), 0

    def _guide(
        self, model: BitNetQDyT, batch: tuple[Tensor, ...], out: MaskedLMOutput
    ) -> MaskedLMOutput | None:
        if not model.training:
            return None
        apart = divergence(out.logits, self.teacher.logits(*batch), self.temperature)
        self._sum += apart.detach() * len(out.logits)
        self._positions += len(out.logits)
        # The gradient is that of the sum, the value still the cross entropy: that is what
        # train/loss, perplexity and other runs are compared by.
        pull = self.weight * apart
        return out._replace(loss=out.loss + (pull - pull.detach()))


def load_teacher(path: str, tokenizer: str, row_tokens: int) -> BitNetQDyT:
    """The encoder of a checkpoint, on the CPU.

    Raises:
        BadInput: there is none, or it does not fit the run's tokenizer or rows.
    """
    try:
        checkpoint = read_checkpoint(Path(path))
        encoder = rebuild_model(checkpoint)
    except BadInput as exc:
        raise BadInput(f"--teacher: {exc}") from exc
    theirs = checkpoint["identity"]["tokenizer"]
    if theirs != tokenizer:
        raise BadInput(
            f"--teacher {path} was trained with the tokenizer {theirs}, and this run has "
            f"{tokenizer}: its predictions would mean other words"
        )
    if encoder.config.max_length < row_tokens:
        raise BadInput(
            f"--teacher {path} takes rows of {encoder.config.max_length} tokens, and this run's "
            f"have {row_tokens}; give --max_length {encoder.config.max_length}, or another teacher"
        )
    return encoder
