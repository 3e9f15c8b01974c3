"""The forms to compare with: unquantized, dense, and with ranges from the largest magnitude."""

import pytest
import torch

from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.activation import ActivationQuantizer
from trainer.model.diagnostics.diagnostics import Diagnostics
from trainer.model.linear import QuantizedLinear
from trainer.model.norms import LayerNorm
from trainer.model.precision import StageBits
from trainer.model.qdyt import QDyT

TINY = ModelConfig.for_size("tiny", 50)


def modules_of(model, kind):
    return [m for m in model.modules() if isinstance(m, kind)]


def test_the_floating_point_form_multiplies_by_its_weights_as_they_are():
    """No rounding of weights or activations in any stage, and no columns to learn."""
    linear = QuantizedLinear(TINY.as_float(), 128, 8, StageBits(None, None, None))
    x = torch.randn(5, 128)

    torch.testing.assert_close(linear(x), x @ linear.weight.T, rtol=0, atol=0)
    assert linear.raw_scale is None


def test_no_part_of_the_floating_point_form_has_bits():
    """Neither the blocks nor embedding and head, at any step."""
    model = BitNetQDyT(TINY.as_float())

    for step in (0, 20, 60):
        model.apply_schedule(step, 100)
        quantizing = modules_of(model, (QuantizedLinear, ActivationQuantizer))
        bits = {m.bits for m in [*quantizing, model.embedding, model.head]}
        assert bits == {None}


def test_the_floating_point_form_is_otherwise_the_same_encoder():
    """Same initial weights from the same seed, same mixers, same QDyT."""
    models = []
    for config in (TINY, TINY.as_float()):
        torch.manual_seed(0)
        models.append(BitNetQDyT(config, seed=3))
    quantized, plain = (model.state_dict() for model in models)

    learned = {name for name in quantized if not name.endswith(("_scale", "threshold", "zone"))}
    assert {n for n in learned if "rho" not in n and "observed" not in n} <= set(plain)
    assert all(torch.equal(quantized[name], plain[name]) for name in set(plain) & set(quantized))


def test_the_dense_form_has_layer_norms_and_neither_mixers_nor_qdyt():
    """What an ordinary encoder of these dimensions has, two norms a block and two more."""
    model = BitNetQDyT(TINY.as_dense())

    assert modules_of(model, QDyT) == []
    assert len(modules_of(model, LayerNorm)) == 2 * TINY.layers + 2
    assert not any("mixer" in name for name in model.state_dict())


@pytest.mark.parametrize("form", ["as_float", "as_dense"])
def test_every_parameter_of_a_form_learns_and_its_bits_are_reported(form):
    """As the quantized encoder's do; 32 bits are what a float32 has."""
    config = getattr(make_model().config, form)()
    model = BitNetQDyT(config)
    model.apply_schedule(60, 100)

    model(*make_batch()).loss.backward()

    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    found = Diagnostics(model).collect()
    assert found["quant/weight_bits_mean"] == 32.0
    assert found["quant/activation_bits_mean"] == 32.0
    assert "quant/weight_sqnr_db" not in found


def test_qdrop_and_dropout_leave_an_unquantized_weight_alone():
    """There is nothing to bypass and no sign to drop."""
    model = make_model(weight_mode="float", qdrop_prob_initial=1.0, ternary_dropout=0.5)
    model.apply_schedule(60, 100)
    linear = model.blocks[0].ffn.up.train()
    x = torch.randn(4, 32)

    assert torch.equal(linear(x), x @ linear.weight.T)


def test_an_absmax_range_is_the_largest_magnitude_that_was_sampled():
    """Channel by channel; nothing of what was seen is then out of range."""
    config = ModelConfig.for_size("tiny", 50, activation_mode="absmax", percentile_momentum=0.0)
    quantizer = ActivationQuantizer(config, 3, StageBits(8, 4, 4))
    x = torch.randn(200, 3) * torch.tensor([0.1, 1.0, 10.0])

    quantizer(x)

    torch.testing.assert_close(quantizer.rho, x.abs().amax(0))
