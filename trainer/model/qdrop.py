"""QDrop: the bypass of a quantizer in a random choice of its training forwards.

In: a probability, from the schedule.
Out: 1 or 0 for each forward, on the device.
Never: reads that choice on the host, which would make every forward wait for the device.

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention" (after QDrop, arXiv:2203.05740).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.model.precision import ScheduledModule
from trainer.model.schedule import ScheduleState


class BypassedModule(ScheduledModule):
    """A quantizer that QDrop may bypass; the buffer bypassed, (), keeps the last choice."""

    bypassed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qdrop_probability = 0.0
        self.register_buffer("bypassed", torch.zeros(()), persistent=False)

    def apply_schedule(self, state: ScheduleState) -> None:
        """Set the probability of the next forwards."""
        self.qdrop_probability = state.qdrop_probability
        if state.qdrop_probability == 0.0:
            self.bypassed.zero_()

    def draw_bypass(self) -> Tensor | None:
        """Choose for one forward: () float, 1 for a bypass; None where QDrop is off."""
        if not (self.training and self.qdrop_probability > 0.0):
            return None
        chance = torch.rand((), device=self.bypassed.device)
        return self.bypassed.copy_(chance < self.qdrop_probability).clone()
