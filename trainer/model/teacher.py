"""Teacher guidance: a second encoder's predictions as a part of the loss.

In: logits of student and teacher on the same predicted positions.
Out: the loss with the teacher's share; an averaged copy of a model, if it is its own teacher.
Never: trains the teacher, or decides its weight; the schedule does.

A teacher is any encoder with the same vocabulary: an AveragedModel, or one loaded from
a checkpoint, for example of the dense form.

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention", teacher guidance; the factor tau^2, which
keeps gradients comparable between temperatures, from Hinton et al. 2015, arXiv:1503.02531.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 2.0
AVERAGE_MOMENTUM = 0.999


def guided_loss(
    loss: Tensor,
    logits: Tensor,
    teacher_logits: Tensor,
    weight: float,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """loss + weight * tau^2 * KL(teacher || student), the mean over predicted positions.

    Shapes: loss (), logits and teacher_logits (M, V) -> (). At temperature tau both
    distributions are softmax(logits / tau); the teacher's gets no gradient.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return loss + weight * temperature**2 * divergence / max(len(logits), 1)


class AveragedModel(nn.Module):
    """An exponential moving average of a model's parameters, always in evaluation mode.

    Not trained, and not part of the model's state: save its own state_dict().
    """

    def __init__(self, model: nn.Module, momentum: float = AVERAGE_MOMENTUM) -> None:
        super().__init__()
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.momentum = momentum

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's parameters; take over its buffers as they are.

        Called after each optimizer step. Buffers are ranges, which are averages already,
        and what is fixed.
        """
        ours: list[Tensor] = list(self.average.parameters())
        theirs = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(ours, theirs, 1.0 - self.momentum)
        for buffer, current in zip(self.average.buffers(), model.buffers(), strict=True):
            buffer.copy_(current)

    def train(self, mode: bool = True) -> AveragedModel:
        """Stay in evaluation mode: a teacher neither drops nor rounds at random."""
        return super().train(False)

    @torch.no_grad()
    def logits(self, *batch: Tensor) -> Tensor:
        """Of the predicted positions, (M, V); batch is what the model takes."""
        out: Tensor = self.average(*batch).logits
        return out
