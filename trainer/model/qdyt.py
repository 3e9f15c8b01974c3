"""QDyT-GN: a clipped, scaled tanh in the place of a normalisation.

In: the residual stream (..., channels).
Out: bounded activations of the same shape.
Never: knows the step; the ramp of alpha is set from outside, so that training and
evaluation compute the same function.

    QDyT(x) = gamma * tanh(alpha * ramp * clip(x - mu, -a, a)) + beta

with a = softplus(raw a), and mu the mean of each group of channels: that of one token, or
after a calibration a fixed one for all tokens.

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
from trainer.model.readings import ObservedModule
from trainer.model.schedule import ScheduleState
from trainer.model.ternary import inverse_softplus

_SATURATED = 0.97


class QDyT(ScheduledModule, ObservedModule):
    """The layer. gamma and beta are learned for each channel, alpha and the clip a for all."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.group_size = config.group_size
        self.alpha_ramp = 1.0
        # (groups,), set by calibration only: the fixed means of all tokens.
        self.group_means: Tensor | None = None
        self.gamma = nn.Parameter(torch.ones(config.d_model))
        self.beta = nn.Parameter(torch.zeros(config.d_model))
        self.alpha = nn.Parameter(torch.tensor(config.alpha_target))
        self.raw_clip = nn.Parameter(inverse_softplus(torch.tensor(config.pact_clip_init)))

    def apply_schedule(self, state: ScheduleState) -> None:
        """Set the ramp of alpha."""
        self.alpha_ramp = state.alpha_ramp

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Apply the layer. Shapes: x (..., channels) -> the same.

        rows holds the indices of the tokens that readings are taken of.
        """
        groups = torch.unflatten(x, -1, (-1, self.group_size))
        means = groups.mean(dim=-1, keepdim=True)
        if self.group_means is not None:
            means = self.group_means[:, None].to(x.dtype)
        centred = (groups - means).flatten(-2)
        clip = F.softplus(self.raw_clip)
        # With tensors as limits, clamp passes the gradient of clipped values to the clip.
        squashed = torch.tanh(self.alpha * self.alpha_ramp * torch.clamp(centred, -clip, clip))
        if self.observing and self.training and rows is not None:
            self._read(centred.detach(), squashed.detach(), clip.detach(), rows)
        return self.gamma * squashed + self.beta

    def _read(self, centred: Tensor, squashed: Tensor, clip: Tensor, rows: Tensor) -> None:
        before, after = (t.flatten(0, -2).index_select(0, rows).abs() for t in (centred, squashed))
        self.readings = {
            "tanh_saturation_ratio": (after > _SATURATED).float().mean(),
            "pact_clip_ratio": (before > clip).float().mean(),
        }
