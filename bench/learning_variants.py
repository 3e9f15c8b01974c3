"""The variants that bench/learning.py compares: three forms, and what is left out of one.

In: the configuration of the tiny size.
Out: what a variant changes of it.
Never: trains anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from trainer.model import ModelConfig

LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Variant:
    """A form of the encoder, and fields that differ from the shipped ones."""

    name: str
    title: str
    changes: dict[str, Any] = field(default_factory=dict)
    form: Literal["quantized", "float", "dense"] = "quantized"
    learning_rate: float = LEARNING_RATE

    def configure(self, base: ModelConfig) -> ModelConfig:
        """The variant's configuration."""
        config = replace(base, **self.changes)
        if self.form == "quantized":
            return config
        return config.as_float() if self.form == "float" else config.as_dense()


_FROM_THE_START = {"stage1": 0.0, "stage2": 0.0}
# What the paper has for this size, and the shipped one has not.
_PUBLISHED = {"percentile_momentum": 0.95, "alpha_init": 0.05, "alpha_target": 0.5}
_QDYT_OUTSIDE = {"embed_norm": "qdyt", "final_norm": "qdyt"}

_ALL = (
    # Of 2e-3, 3e-3 and 5e-3 the lowest is the dense encoder's best; at 5e-3 it stays at the
    # unigram loss. A baseline at a rate that does not suit it would flatter the others.
    Variant("dense", "dense fp32, LayerNorm, no mixers, rate 2e-3", {}, "dense", 2e-3),
    Variant("dense_same_rate", "dense fp32 at the rate of all others", form="dense"),
    Variant("float", "own fp32 form: QDyT blocks, mixers", form="float"),
    Variant("ternary", "shipped: ternary, int4, stages, QDrop"),
    Variant("published", "published range momentum and alpha", _PUBLISHED),
    Variant("slow_ranges", "published range momentum, 0.95", {"percentile_momentum": 0.95}),
    Variant(
        "small_alpha", "published alpha, 0.05 to 0.5", {"alpha_init": 0.05, "alpha_target": 0.5}
    ),
    Variant("float_activations", "activations unquantized", {"activation_mode": "float"}),
    Variant("mixers_none", "mixers none", {"mixers": "none"}),
    Variant("mixers_dpd", "mixers DPD", {"mixers": "dpd"}),
    Variant("absmax", "absmax ranges", {"activation_mode": "absmax"}),
    Variant("paper_threshold", "paper thresholds", {"weight_mode": "paper"}),
    Variant("absmean", "absmean weights", {"weight_mode": "absmean"}),
    Variant("no_stages", "no stages: ternary from step 0", _FROM_THE_START),
    Variant("no_qdrop", "no QDrop", {"qdrop_prob_initial": 0.0}),
    Variant("no_dropout", "no ternary dropout", {"ternary_dropout": 0.0}),
    Variant("layernorm", "LayerNorm in the blocks too", {"block_norm": "layernorm"}),
    Variant("qdyt_ends", "QDyT at embedding and head too", _QDYT_OUTSIDE),
    Variant(
        "paper",
        "the paper's form: paper thresholds, QDyT everywhere",
        {"weight_mode": "paper", **_QDYT_OUTSIDE, **_PUBLISHED},
    ),
)

VARIANTS = {variant.name: variant for variant in _ALL}
