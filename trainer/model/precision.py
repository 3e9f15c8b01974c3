"""Numbers of bits of each site in each stage of training.

In: the configuration, a layer's number and the name of a site in its block.
Out: StageBits, from which a quantizer takes its bits when the stage changes.
Never: holds a tensor.

A site is the input or the weight of one linear layer: q, k, v, o, up, gate, down.

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention", mixed precision and progressive stages.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from trainer.model.config import TERNARY_BITS, ActivationMode, ModelConfig, WeightMode
from trainer.model.schedule import ScheduleState, Stage

WARMUP_BITS = 8


class StageBits(NamedTuple):
    """Bits of one quantizer in each stage; None means that values are not quantized."""

    warmup: int | None
    partial_ternary: int | None
    full_ternary: int | None

    def in_stage(self, stage: Stage) -> int | None:
        """Return the bits in force in a stage."""
        bits: int | None = getattr(self, stage)
        return bits


def stage_label(config: ModelConfig, stage: Stage) -> str:
    """Return the name of a stage as metrics and messages have it.

    Where weights stay float the name does not speak of ternary weights.
    """
    if config.weight_mode != "float":
        return stage
    if config.activation_mode == "float":
        return "float"
    return "warmup" if stage == "warmup" else "float_weights"


UNQUANTIZED = StageBits(None, None, None)


class ScheduledModule(nn.Module):
    """A module with settings that follow from the step number."""

    def apply_schedule(self, state: ScheduleState) -> None:
        """Set what the schedule says. Called between steps, never in a forward."""
        raise NotImplementedError


def weight_stage_bits(config: ModelConfig, layer: int, site: str) -> StageBits:
    """Return the bits of a weight: int8 first, then ternary.

    The upper half of the layers becomes ternary in the partial_ternary stage, the others in
    full_ternary. V and O of the last blocks have vo_bits instead.
    """
    if config.weight_mode == "float":
        return UNQUANTIZED
    if _is_late_value_path(config, layer, site):
        return StageBits(WARMUP_BITS, config.vo_bits, config.vo_bits)
    is_top_half = layer >= config.layers // 2
    partial = TERNARY_BITS if is_top_half else WARMUP_BITS
    return StageBits(WARMUP_BITS, partial, TERNARY_BITS)


def activation_stage_bits(config: ModelConfig, layer: int, site: str) -> StageBits:
    """Return the bits of an input: int8 in the warmup stage, then those of its site.

    They are qk_bits for Q and K, gate_bits for the gate, vo_bits for V and O of the last
    blocks, and activation_bits for all others.
    """
    if config.activation_mode == "float":
        return UNQUANTIZED
    bits = {"q": config.qk_bits, "k": config.qk_bits, "gate": config.gate_bits}.get(
        site, config.activation_bits
    )
    if _is_late_value_path(config, layer, site):
        bits = config.vo_bits
    return StageBits(WARMUP_BITS, bits, bits)


def table_stage_bits(bits: int, mode: WeightMode | ActivationMode) -> StageBits:
    """Return the bits of a table of embedding or head, which has no ternary stage."""
    return UNQUANTIZED if mode == "float" else StageBits(WARMUP_BITS, bits, bits)


def _is_late_value_path(config: ModelConfig, layer: int, site: str) -> bool:
    return site in ("v", "o") and layer >= config.layers - config.mixed_precision_last_blocks
