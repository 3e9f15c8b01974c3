"""A linear layer with a quantized weight and no bias.

In: activations that are quantized already.
Out: their product with the weight at the bits in force.
Never: quantizes activations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.config import TERNARY_BITS, ModelConfig
from trainer.model.integer import bypassed_to, integer_codes, integer_weights
from trainer.model.noise import random_mask_like
from trainer.model.precision import StageBits
from trainer.model.qdrop import BypassedModule
from trainer.model.schedule import ScheduleState
from trainer.model.ternary import (
    TernaryStart,
    absmean_ternary,
    inverse_softplus,
    learned_ternary,
    paper_start,
    straight_through,
    symmetric_start,
    ternary_codes,
)
from trainer.model.weight_cache import QuantizesWeight


class Columns(NamedTuple):
    """The learned parameters of a ternary weight, (out, 1) each; s is softplus(raw_scale)."""

    raw_scale: nn.Parameter
    threshold: nn.Parameter
    dead_zone: nn.Parameter


COLUMN_NAMES = Columns._fields


class QuantizedLinear(BypassedModule, QuantizesWeight):
    """A linear layer that is int8 or ternary, as the schedule says.

    Weights start as N(0, 1 / d_in). The columns raw_scale, threshold and dead_zone, each
    (out, 1), exist if the layer has a ternary stage and its mode learns them. They are
    initialized from the weights at the moment when the layer first becomes ternary, and
    ternary_started, which a checkpoint keeps, is true from then on. start_scale and
    start_dead_zone keep these initial values.
    """

    raw_scale: nn.Parameter | None
    threshold: nn.Parameter | None
    dead_zone: nn.Parameter | None
    start_scale: Tensor
    start_dead_zone: Tensor
    ternary_started: Tensor

    def __init__(self, config: ModelConfig, d_in: int, d_out: int, bits: StageBits) -> None:
        super().__init__()
        self.mode = config.weight_mode
        self.grad_clip: float | Tensor = config.lsq_grad_clip
        self.stage_bits = bits
        self.bits = bits.full_ternary
        self.dither = False
        self.ternary_dropout = 0.0
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        nn.init.normal_(self.weight, std=d_in**-0.5)
        self._add_columns(learned=TERNARY_BITS in bits and self.mode != "absmean")
        self.register_buffer("ternary_started", torch.zeros((), dtype=torch.bool))

    def apply_schedule(self, state: ScheduleState) -> None:
        """Set bits, dither, ternary dropout and QDrop's probability of the next forwards."""
        super().apply_schedule(state)
        bits = self.stage_bits.in_stage(state.stage)
        if bits == TERNARY_BITS and self.bits != TERNARY_BITS:
            self._start_ternary()
        self.bits = bits
        self.dither = state.dither
        self.ternary_dropout = state.ternary_dropout

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the weight in force. Shapes: x (..., d_in) -> (..., d_out)."""
        return F.linear(x, self.weight_in_force())

    @property
    def is_ternary(self) -> bool:
        """True if the bits in force are the ternary ones."""
        return self.bits == TERNARY_BITS

    def columns(self) -> Columns | None:
        """Return the learned columns; None for a layer that is never ternary or has no own."""
        if self.raw_scale is None or self.threshold is None or self.dead_zone is None:
            return None
        return Columns(self.raw_scale, self.threshold, self.dead_zone)

    @torch.no_grad()
    def codes(self) -> tuple[Tensor, Tensor]:
        """Return codes (out, in) and scale, broadcastable to them, at the bits in force.

        There is no training noise in them: codes * scale is the weight of an evaluation. A
        weight that is not quantized is returned as its own codes, with a scale of 1.
        """
        if self.bits is None:
            return self.weight, self.weight.new_ones(())
        if not self.is_ternary:
            codes, step = integer_codes(self.weight, self.bits)
            return codes.flatten(-2), step.flatten(-2)
        columns = self.columns()
        if columns is None:
            return absmean_ternary(self.weight)
        codes = ternary_codes(self.weight, columns.threshold, columns.dead_zone)
        return codes, F.softplus(columns.raw_scale)

    def quantized_weight(self) -> Tensor:
        """Return the weight at the bits in force, (out, in); with noise in training mode."""
        bypass = None if self.bits is None else self.draw_bypass()
        if self.is_ternary:
            return self._ternary_weight(bypass)
        return self._integer_weight(bypass)

    def _integer_weight(self, bypass: Tensor | None) -> Tensor:
        return integer_weights(
            self.weight,
            self.bits,
            dither=self.dither and self.training,
            bypass=bypass,
            idle=self.columns() or (),
        )

    def _ternary_weight(self, bypass: Tensor | None) -> Tensor:
        kept = None
        if self.training and self.ternary_dropout > 0.0:
            kept = random_mask_like(self.weight, 1.0 - self.ternary_dropout)
        columns = self.columns()
        if columns is None:
            return self._absmean_weight(kept, bypass)
        return learned_ternary(
            self.weight, *columns, grad_clip=self.grad_clip, kept=kept, bypass=bypass
        )

    def _absmean_weight(self, kept: Tensor | None, bypass: Tensor | None) -> Tensor:
        codes, scale = absmean_ternary(self.weight.detach())
        if kept is not None:
            codes.mul_(kept.to(codes.dtype))
        # Only the weight is learned in this mode, so plain straight-through is enough.
        quantized = bypassed_to(self.weight.detach(), codes.mul_(scale), bypass)
        return straight_through(self.weight, quantized)

    def _start(self) -> TernaryStart:
        start = paper_start if self.mode == "paper" else symmetric_start
        return start(self.weight.detach())

    def _add_columns(self, learned: bool) -> None:
        self.raw_scale = self.threshold = self.dead_zone = None
        if learned:
            scale, threshold, dead_zone = self._start()
            self.raw_scale = nn.Parameter(inverse_softplus(scale))
            self.threshold = nn.Parameter(threshold)
            self.dead_zone = nn.Parameter(dead_zone)
            self.register_buffer("start_scale", scale.clone())
            self.register_buffer("start_dead_zone", dead_zone.clone())

    @torch.no_grad()
    def _start_ternary(self) -> None:
        """Initialize the columns from the current weights, unless that was done before.

        The buffer ternary_started decides, on the device: a run that is resumed in a
        ternary stage gets here with columns that are trained already.
        """
        columns = self.columns()
        if columns is None:
            return
        scale, threshold, dead_zone = self._start()
        started = self.ternary_started
        for kept, start in (
            (columns.raw_scale, inverse_softplus(scale)),
            (columns.threshold, threshold),
            (columns.dead_zone, dead_zone),
            (self.start_scale, scale),
            (self.start_dead_zone, dead_zone),
        ):
            kept.copy_(torch.where(started, kept, start))
        started.fill_(True)


def linear_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Return the linear layers with a quantized weight, by name."""
    return {n: module for n, module in model.named_modules() if isinstance(module, QuantizedLinear)}
