"""Which site has how many bits in which stage.

In: the configuration, a layer's number and the name of a site in its block.
Out: StageBits, which a quantizer keeps and reads when the schedule moves.
Never: holds a tensor.

A site is the input or the weight of one linear layer: q, k, v, o, up, gate, down.

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention", mixed precision and progressive stages.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from trainer.model.config import TERNARY_BITS, ActivationMode, ModelConfig, WeightMode
from trainer.schedule import ScheduleState, Stage

WARMUP_BITS = 8


class StageBits(NamedTuple):
    """Bits of one quantizer in each stage, in their order; None leaves values as they are."""

    warmup: int | None
    partial_ternary: int | None
    full_ternary: int | None

    def in_stage(self, stage: Stage) -> int | None:
        """Bits in force in a stage."""
        bits: int | None = getattr(self, stage)
        return bits


def stage_label(config: ModelConfig, stage: Stage) -> str:
    """The name of a stage for people: no weight is ternary where weights stay float."""
    if config.weight_mode != "float":
        return stage
    if config.activation_mode == "float":
        return "float"
    return "warmup" if stage == "warmup" else "float_weights"


UNQUANTIZED = StageBits(None, None, None)


class ScheduledModule(nn.Module):
    """A module with state that the step number decides."""

    def apply_schedule(self, state: ScheduleState) -> None:
        """Take over what the schedule says. Called between steps, never in a forward."""
        raise NotImplementedError


def weight_stage_bits(config: ModelConfig, layer: int, site: str) -> StageBits:
    """Int8 first; then the top half of the layers ternary, then all of them.

    V and O of the last blocks never become ternary: they keep vo_bits.
    """
    if config.weight_mode == "float":
        return UNQUANTIZED
    if _is_late_value_path(config, layer, site):
        return StageBits(WARMUP_BITS, config.vo_bits, config.vo_bits)
    is_top_half = layer >= config.layers // 2
    partial = TERNARY_BITS if is_top_half else WARMUP_BITS
    return StageBits(WARMUP_BITS, partial, TERNARY_BITS)


def activation_stage_bits(config: ModelConfig, layer: int, site: str) -> StageBits:
    """Int8 in the warmup stage, then activation_bits but for the mixed sites."""
    if config.activation_mode == "float":
        return UNQUANTIZED
    bits = {"q": config.qk_bits, "k": config.qk_bits, "gate": config.gate_bits}.get(
        site, config.activation_bits
    )
    if _is_late_value_path(config, layer, site):
        bits = config.vo_bits
    return StageBits(WARMUP_BITS, bits, bits)


def end_stage_bits(bits: int, mode: WeightMode | ActivationMode) -> StageBits:
    """Bits of the embedding and of the head, which have no ternary stage."""
    return UNQUANTIZED if mode == "float" else StageBits(WARMUP_BITS, bits, bits)


def _is_late_value_path(config: ModelConfig, layer: int, site: str) -> bool:
    return site in ("v", "o") and layer >= config.layers - config.mixed_precision_last_blocks
