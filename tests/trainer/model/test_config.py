"""The published sizes, and configurations that cannot be built."""

import dataclasses

import pytest
import torch

from trainer.model import MODEL_SIZES, BitNetQDyT, ModelConfig

# With a vocabulary of 30,522. The paper's code has 65.3, 160.9, about 139 and 466 million.
PARAMETERS = {
    "tiny": 8_531_538,
    "small": 65_276_778,
    "base": 160_941_954,
    "rtx": 139_559_298,
    "large": 466_759_626,
}


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_each_size_has_exactly_its_number_of_parameters(size):
    """A change of the architecture shows here, whatever else it leaves alone."""
    config = ModelConfig.for_size(size, 30_522)

    with torch.device("meta"):
        model = BitNetQDyT(config)

    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[size]


def test_overrides_replace_single_fields_of_a_size():
    """What is not named stays as the size has it."""
    config = ModelConfig.for_size("rtx", 100, max_length=64, qk_bits=7)

    assert (config.max_length, config.qk_bits, config.group_size) == (64, 7, 8)


def test_a_configuration_cannot_be_changed_after_it_is_built():
    """It is what a checkpoint says the model was built from."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig.for_size("tiny", 100).layers = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"layers": 2.0}, "layers is 2.0"),
        ({"heads": 3}, "heads is 3, which does not divide d_model 128"),
        ({"group_size": 24}, "group_size is 24, which does not divide d_model 128"),
        ({"hadamard_block": 48}, "hadamard_block is 48"),
        ({"mixed_precision_last_blocks": 5}, "mixed_precision_last_blocks is 5"),
        ({"activation_bits": 1}, "activation_bits is 1, and has to be from 2 to 8"),
        ({"vo_bits": 2}, "vo_bits is 2, and has to be from 3 to 8"),
        ({"percentile": 101.0}, "percentile is 101.0"),
        ({"percentile_momentum": 1.0}, "percentile_momentum is 1.0"),
        ({"stage1": 0.5, "stage2": 0.4}, "stage2 is 0.4, and has to be from 0.5 to 1.0"),
        ({"qdrop_prob_initial": float("nan")}, "qdrop_prob_initial is nan"),
        ({"qdrop_anneal_steps": 1.5}, "qdrop_anneal_steps is 1.5"),
        ({"qdyt_warmup_steps": -1}, "qdyt_warmup_steps is -1"),
        ({"alpha_init": 0.0}, "alpha_init is 0.0"),
        ({"lsq_grad_clip": float("inf")}, "lsq_grad_clip is inf"),
        ({"weight_mode": "binary"}, "weight_mode is 'binary', and has to be one of symmetric"),
        ({"final_norm": "rms"}, "final_norm is 'rms'"),
        ({"depth": 3}, "no field depth"),
    ],
)
def test_an_impossible_configuration_is_refused_with_its_field_and_value(overrides, message):
    """One sentence says what to change."""
    with pytest.raises(ValueError, match=message):
        ModelConfig.for_size("tiny", **{"vocab_size": 100, **overrides})


def test_an_unknown_size_is_refused_with_the_known_ones():
    """The message lists what there is."""
    with pytest.raises(ValueError, match="'huge' is not one of tiny, small, base, rtx, large"):
        ModelConfig.for_size("huge", 100)
