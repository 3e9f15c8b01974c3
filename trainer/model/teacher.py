"""Teacher guidance: how far a model's predictions are from those of a second encoder.

In: batches, and the logits of both on the same predicted positions.
Out: a teacher's logits, and the divergence from them as a loss.
Never: trains the teacher, or decides the weight of that loss; the schedule does.

A teacher is any encoder with the same vocabulary: the average of the model itself, or
one loaded from a checkpoint, for example of the dense form.

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention", teacher guidance; the factor tau^2, which
keeps gradients comparable between temperatures, from Hinton et al. 2015, arXiv:1503.02531.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.encoder import BitNetQDyT

AVERAGE_MOMENTUM = 0.999


def divergence(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """tau^2 * KL(teacher || student), the mean over predicted positions.

    Shapes: logits and teacher_logits (M, V) -> (). At temperature tau both distributions
    are softmax(logits / tau); the teacher's gets no gradient.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    summed = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return temperature**2 * summed / max(len(logits), 1)


class Teacher(nn.Module):
    """An encoder that only predicts: always in evaluation mode, and never trained."""

    def __init__(self, encoder: BitNetQDyT) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()

    @torch.no_grad()
    def logits(self, *batch: Tensor) -> Tensor:
        """Of the predicted positions, (M, V); batch is what the encoder takes."""
        out: Tensor = self.encoder(*batch).logits
        return out

    def apply_schedule(self, step: int, total_steps: int) -> None:
        """Its own training is over: it has the bits that it ended with."""

    def follow(self, model: BitNetQDyT, step: int) -> None:
        """What the model learns does not change it."""

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode: a teacher neither drops nor rounds at random."""
        return super().train(False)


class AveragedTeacher(Teacher):
    """An exponential moving average of a model's parameters, with the bits in force.

    Not part of the model's state: save its own state_dict().
    """

    def __init__(self, model: BitNetQDyT) -> None:
        super().__init__(copy.deepcopy(model))

    def apply_schedule(self, step: int, total_steps: int) -> None:
        """Have the bits of the model; columns start from the averaged weights."""
        self.encoder.apply_schedule(step, total_steps)

    @torch.no_grad()
    def follow(self, model: BitNetQDyT, step: int) -> None:
        """Move towards the model's parameters; take over its buffers as they are.

        Called after each optimizer step, which is the step-th. Buffers are ranges, which
        are averages already, and what is fixed.
        """
        ours: list[Tensor] = list(self.encoder.parameters())
        theirs = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(ours, theirs, 1.0 - average_momentum(step))
        for buffer, current in zip(self.encoder.buffers(), model.buffers(), strict=True):
            buffer.copy_(current)


def average_momentum(step: int) -> float:
    """AVERAGE_MOMENTUM, less in the first steps: the average spans a tenth of them at most.

    Otherwise a run of a few hundred steps would be taught by its initial weights.
    """
    return min(AVERAGE_MOMENTUM, (1 + step) / (10 + step))
