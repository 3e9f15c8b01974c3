"""QDyT-GN: a clipped, scaled tanh in the place of a normalisation.

In: the residual stream (..., channels).
Out: bounded activations of the same shape.
Never: knows the step; the ramp of alpha is handed in, so that training and evaluation
see one and the same function.

    QDyT(x) = gamma * tanh(alpha * ramp * clip(x - mu, -a, a)) + beta

with mu the mean of each group of channels of one token and a = softplus(raw a).

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention" (after DyT, arXiv:2503.10622, and PACT,
arXiv:1805.06085).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.config import ModelConfig
from trainer.model.precision import ScheduledModule
from trainer.model.ternary import inverse_softplus
from trainer.schedule import ScheduleState

_SATURATED = 0.97


class QDyT(ScheduledModule):
    """gamma and beta are learned for each channel, alpha and the clip a for all."""

    tanh_saturation: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.group_size = config.group_size
        self.alpha_ramp = 1.0
        self.gamma = nn.Parameter(torch.ones(config.d_model))
        self.beta = nn.Parameter(torch.zeros(config.d_model))
        self.alpha = nn.Parameter(torch.tensor(config.alpha_target))
        self.raw_clip = nn.Parameter(inverse_softplus(torch.tensor(config.pact_clip_init)))
        self.register_buffer("tanh_saturation", torch.zeros(()), persistent=False)

    def apply_schedule(self, state: ScheduleState) -> None:
        """Take over the ramp of alpha."""
        self.alpha_ramp = state.alpha_ramp

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(..., channels) -> (..., channels); rows name the tokens that diagnostics see."""
        groups = torch.unflatten(x, -1, (-1, self.group_size))
        centred = (groups - groups.mean(dim=-1, keepdim=True)).flatten(-2)
        clip = F.softplus(self.raw_clip)
        # Clamping by tensors passes the gradient of what is clipped on to the clip.
        squashed = torch.tanh(self.alpha * self.alpha_ramp * torch.clamp(centred, -clip, clip))
        if self.training and rows is not None:
            self._observe(squashed.detach().flatten(0, -2).index_select(0, rows))
        return self.gamma * squashed + self.beta

    def _observe(self, sample: Tensor) -> None:
        self.tanh_saturation.copy_((sample.abs() > _SATURATED).float().mean())
