"""Teachers for distillation: second encoders whose predictions a model also learns from.

In: batches, and the logits of both encoders on the same predicted positions.
Out: a teacher's logits, and the divergence from them as a loss.
Never: trains the teacher, or decides the weight of that loss; the schedule does.

A teacher is any encoder with the same vocabulary: the moving average of the model itself,
or one loaded from a checkpoint, for example of a dense model.

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention", under the name of teacher guidance; the factor
tau^2, which keeps gradients comparable between temperatures, from Hinton et al. 2015,
arXiv:1503.02531.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.encoder import BitNetQDyT

AVERAGE_MOMENTUM = 0.999


def divergence(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return tau^2 * KL(teacher || student) in nats, the mean over predicted positions.

    Shapes: logits and teacher_logits (M, V) -> (). tau is the temperature: both
    distributions are softmax(logits / tau). The teacher's logits get no gradient.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    summed = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return temperature**2 * summed / max(len(logits), 1)


class Teacher(nn.Module):
    """A fixed encoder, always in evaluation mode and never trained."""

    def __init__(self, encoder: BitNetQDyT) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()

    @torch.no_grad()
    def logits(self, *batch: Tensor) -> Tensor:
        """Return logits of the predicted positions, (M, V); batch is the encoder's arguments."""
        out: Tensor = self.encoder(*batch).logits
        return out

    def apply_schedule(self, step: int, total_steps: int) -> None:
        """Do nothing: a fixed teacher keeps the bits that its own training ended with."""

    def follow(self, model: BitNetQDyT, step: int) -> None:
        """Do nothing: a fixed teacher does not learn from the model."""

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode: a teacher neither drops nor rounds at random."""
        return super().train(False)


class AveragedTeacher(Teacher):
    """An exponential moving average of a model's parameters, with the bits in force.

    It is not part of the model's state_dict(); save that of the teacher beside it.
    """

    def __init__(self, model: BitNetQDyT) -> None:
        super().__init__(copy.deepcopy(model))

    def apply_schedule(self, step: int, total_steps: int) -> None:
        """Set the bits of the model; columns are initialized from the averaged weights."""
        self.encoder.apply_schedule(step, total_steps)

    @torch.no_grad()
    def follow(self, model: BitNetQDyT, step: int) -> None:
        """Move towards the model's parameters, and copy its buffers.

        Called after each optimizer step; step counts those done. Buffers are not averaged:
        they are ranges, which are averages already, and constants.
        """
        ours: list[Tensor] = list(self.encoder.parameters())
        theirs = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(ours, theirs, 1.0 - average_momentum(step))
        for buffer, current in zip(self.encoder.buffers(), model.buffers(), strict=True):
            buffer.copy_(current)


def average_momentum(step: int) -> float:
    """Return the momentum of the average: AVERAGE_MOMENTUM, and less in the first steps.

    Early on the average spans about a tenth of the steps done. Otherwise a run of a few
    hundred steps would learn from its initial weights.
    """
    return min(AVERAGE_MOMENTUM, (1 + step) / (10 + step))
