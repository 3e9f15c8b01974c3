"""The dimensions and settings of one encoder, checked once, then frozen.

In: the name of a published size and the fields that differ from it.
Out: a ModelConfig that the encoder can be built from.
Never: imports torch, or changes after it is built.

Source of sizes and settings: Jithin VG, "Orthogonality-Aware Ternary Encoders with
Percentile-Scaled Int4 Activations and Mixed-Precision Attention". Where our default
differs from the paper's, the field's comment says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

WeightMode = Literal["symmetric", "paper", "absmean", "float"]
ActivationMode = Literal["percentile", "absmax", "float"]
NormKind = Literal["layernorm", "qdyt"]
Mixers = Literal["hadamard_dpd", "hadamard", "dpd", "none"]

# An int counts optimizer steps; a float is a fraction of the whole training.
Steps = int | float

NOT_PREDICTED = -100
"""The label of a position that is not to be predicted, as torch's cross entropy has it."""

TERNARY_BITS = 2
"""Two bits have one level each side of zero, so a 2-bit weight is a ternary one."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Every setting that the function of the encoder depends on.

    Raises:
        ValueError: one sentence that names the field, its value and what is allowed.
    """

    vocab_size: int
    layers: int
    d_model: int
    heads: int
    d_ffn: int
    max_length: int
    group_size: int = 16  # channels that share one mean in QDyT

    # Bits of the last stage; in the warmup stage every site has 8.
    activation_bits: int = 4
    qk_bits: int = 8  # inputs of the Q and K projections
    gate_bits: int = 8  # input of the gate projection
    embedding_bits: int = 8
    head_bits: int = 8  # weights and input of the language-model head
    vo_bits: int = 8  # weights and inputs of V and O in the last blocks
    mixed_precision_last_blocks: int = 1

    percentile: float = 99.7
    percentile_momentum: float = 0.95

    stage1: float = 0.1  # fraction of all steps at which ternary weights begin
    stage2: float = 0.4  # fraction of all steps from which every layer is ternary
    qdrop_prob_initial: float = 0.1
    qdrop_anneal_steps: Steps = 30_000
    ternary_dropout: float = 0.1
    ternary_dropout_steps: Steps = 10_000  # counted from the first ternary step

    alpha_init: float = 0.05
    alpha_target: float = 0.5
    qdyt_warmup_steps: Steps = 2_000
    pact_clip_init: float = 6.0

    skip_init_scale: float = 0.5
    # Largest magnitude of each gradient of s, t and delta. It guards against a step that
    # explodes: the largest in an ordinary step are about a hundredth of it and not clipped.
    lsq_grad_clip: float = 1.0
    # AdamW moves s, t and delta by about its learning rate whatever the size of their
    # gradient, and t and delta are a tenth as large as the weights the rate is chosen for.
    quantizer_lr_scale: float = 0.1

    # The paper has "paper" thresholds, and QDyT in place of both LayerNorms. With them the
    # weights become a skewed binary code, and the norms of embedding and head learn far
    # more slowly. "float" leaves weights or activations unquantized everywhere.
    weight_mode: WeightMode = "symmetric"
    activation_mode: ActivationMode = "percentile"
    block_norm: NormKind = "qdyt"
    embed_norm: NormKind = "layernorm"
    final_norm: NormKind = "layernorm"
    mixers: Mixers = "hadamard_dpd"
    hadamard_block: int = 64

    def __post_init__(self) -> None:
        _check_dimensions(self)
        _check_bits(self)
        _check_ranges(self)
        _check_choices(self)

    @classmethod
    def for_size(cls, size: str, vocab_size: int, **overrides: Any) -> ModelConfig:
        """Build the configuration of a published size; overrides replace single fields.

        Raises:
            ValueError: no such size or field, or a configuration that cannot be built.
        """
        if size not in _SIZES:
            raise ValueError(f"model size {size!r} is not one of {', '.join(MODEL_SIZES)}")
        unknown = sorted(set(overrides) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"a model configuration has no field {', '.join(unknown)}")
        return cls(**{**_SIZES[size], "vocab_size": vocab_size, **overrides})

    def as_float(self) -> ModelConfig:
        """Return the configuration of the same encoder without any quantization."""
        return replace(self, weight_mode="float", activation_mode="float")

    def as_dense(self) -> ModelConfig:
        """Return the configuration of an ordinary encoder of the same dimensions.

        It has no quantizers, no mixers, and LayerNorm everywhere.
        """
        return replace(
            self.as_float(),
            mixers="none",
            block_norm="layernorm",
            embed_norm="layernorm",
            final_norm="layernorm",
        )

    @property
    def d_head(self) -> int:
        """Channels of one attention head."""
        return self.d_model // self.heads


_TINY: dict[str, Any] = {
    "layers": 4, "d_model": 128, "heads": 2, "d_ffn": 256, "max_length": 128,
    # A tiny run has a few hundred steps, so its spans are fractions of it. Its ranges and its
    # alpha differ from the published 0.95 and 0.05 to 0.5: a character model of 900 steps
    # ended at 1.97 nats with those, at 1.89 with faster ranges, and at 1.84 with both.
    "percentile_momentum": 0.5, "alpha_init": 0.1, "alpha_target": 1.0,
    "qdrop_anneal_steps": 0.3, "ternary_dropout_steps": 0.3, "qdyt_warmup_steps": 0.1,
}  # fmt: skip
_SMALL: dict[str, Any] = {
    "layers": 8, "d_model": 512, "heads": 8, "d_ffn": 2048, "max_length": 512,
}  # fmt: skip
_BASE: dict[str, Any] = {
    "layers": 12, "d_model": 768, "heads": 12, "d_ffn": 3072, "max_length": 512,
    "qk_bits": 6, "vo_bits": 6, "mixed_precision_last_blocks": 2, "stage2": 0.3,
    "qdrop_anneal_steps": 50_000, "qdyt_warmup_steps": 5_000,
    "ternary_dropout": 0.05, "ternary_dropout_steps": 20_000,
}  # fmt: skip
_RTX: dict[str, Any] = {
    "layers": 12, "d_model": 768, "heads": 12, "d_ffn": 2304, "max_length": 384, "group_size": 8,
    "qk_bits": 6, "embedding_bits": 6, "head_bits": 6,
    "vo_bits": 6, "mixed_precision_last_blocks": 1,
    "percentile": 99.5, "percentile_momentum": 0.9, "stage1": 0.05, "stage2": 0.2,
    "qdrop_prob_initial": 0.15, "qdrop_anneal_steps": 25_000,
    "alpha_init": 0.1, "alpha_target": 0.4, "qdyt_warmup_steps": 3_000,
    "skip_init_scale": 0.4, "lsq_grad_clip": 0.8,
    "ternary_dropout": 0.05, "ternary_dropout_steps": 15_000,
}  # fmt: skip
_LARGE: dict[str, Any] = {
    "layers": 24, "d_model": 1024, "heads": 16, "d_ffn": 4096, "max_length": 512, "group_size": 32,
    "mixed_precision_last_blocks": 3, "stage1": 0.05, "stage2": 0.25,
}  # fmt: skip
_SIZES = {"tiny": _TINY, "small": _SMALL, "base": _BASE, "rtx": _RTX, "large": _LARGE}

MODEL_SIZES = tuple(_SIZES)


def _check_dimensions(config: ModelConfig) -> None:
    for name in ("vocab_size", "layers", "d_model", "heads", "d_ffn", "max_length", "group_size"):
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, and has to be a whole number of at least 1")
    for part, whole in (("heads", "d_model"), ("group_size", "d_model")):
        if getattr(config, whole) % getattr(config, part):
            raise ValueError(
                f"{part} is {getattr(config, part)}, which does not divide "
                f"{whole} {getattr(config, whole)}"
            )
    block = config.hadamard_block
    if not isinstance(block, int) or block < 1 or block & (block - 1):
        raise ValueError(f"hadamard_block is {block!r}, and has to be a power of two")
    if not 0 <= config.mixed_precision_last_blocks <= config.layers:
        raise ValueError(
            f"mixed_precision_last_blocks is {config.mixed_precision_last_blocks}, "
            f"and has to be from 0 to layers {config.layers}"
        )


def _check_bits(config: ModelConfig) -> None:
    for name in ("activation_bits", "qk_bits", "gate_bits"):
        _check_between(config, name, 2, 8)
    for name in ("embedding_bits", "head_bits", "vo_bits"):
        # Two bits would mean ternary, and these sites have no threshold to learn.
        _check_between(config, name, 3, 8)


def _check_ranges(config: ModelConfig) -> None:
    _check_between(config, "percentile", 50.0, 100.0)
    _check_between(config, "percentile_momentum", 0.0, 0.9999)
    _check_between(config, "stage1", 0.0, 1.0)
    _check_between(config, "stage2", config.stage1, 1.0)
    _check_between(config, "qdrop_prob_initial", 0.0, 1.0)
    _check_between(config, "ternary_dropout", 0.0, 0.9)
    _check_between(config, "quantizer_lr_scale", 0.0, 1.0)
    for name in ("alpha_init", "alpha_target", "pact_clip_init", "skip_init_scale"):
        _check_positive(config, name)
    _check_positive(config, "lsq_grad_clip")
    for name in ("qdrop_anneal_steps", "ternary_dropout_steps", "qdyt_warmup_steps"):
        value = getattr(config, name)
        if value < 0 or (isinstance(value, float) and value > 1):
            raise ValueError(
                f"{name} is {value!r}, and has to be a whole number of steps from 0 or a "
                "fraction of the training from 0.0 to 1.0"
            )


def _check_choices(config: ModelConfig) -> None:
    choices: tuple[tuple[str, Any], ...] = (
        ("weight_mode", WeightMode), ("activation_mode", ActivationMode),
        ("block_norm", NormKind), ("embed_norm", NormKind),
        ("final_norm", NormKind), ("mixers", Mixers),
    )  # fmt: skip
    for name, kind in choices:
        if getattr(config, name) not in get_args(kind):
            allowed = ", ".join(get_args(kind))
            raise ValueError(f"{name} is {getattr(config, name)!r}, and has to be one of {allowed}")


def _check_between(config: ModelConfig, name: str, low: float, high: float) -> None:
    value = getattr(config, name)
    if not low <= value <= high:
        raise ValueError(f"{name} is {value!r}, and has to be from {low} to {high}")


def _check_positive(config: ModelConfig, name: str) -> None:
    value = getattr(config, name)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}, and has to be a number above 0")
