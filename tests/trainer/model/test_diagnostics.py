"""Diagnostics: what they are called, what they are, and when they are left out."""

import math

import pytest
import torch

from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.model.linear import QuantizedLinear

OCCUPANCY = {"quant/zero_ratio", "quant/plus_ratio", "quant/minus_ratio"}


def test_occupancy_is_left_out_while_nothing_is_ternary():
    """A missing reading is missing, never a 0 that a chart would draw."""
    model = make_model()
    model.apply_schedule(0, 100)

    found = model.diagnostics()

    assert not OCCUPANCY & set(found)
    assert found["quant/weight_bits_mean"] == 8.0
    assert found["quant/activation_bits_mean"] == 8.0


def test_what_a_forward_observes_is_left_out_before_there_was_one():
    """Overload and saturation need a training batch."""
    model = make_model()
    before = model.diagnostics()
    model(*make_batch())

    after = model.diagnostics()

    observed = {"quant/activation_overload_rate", "quant/tanh_saturation_ratio"}
    assert not observed & set(before)
    assert observed <= set(after)


def test_occupancy_and_signal_to_noise_are_those_of_the_weights_in_force():
    """Counted over all ternary layers, and summed over all layers."""
    model = make_model()
    model.apply_schedule(60, 100)
    linears = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    codes = torch.cat([m.codes()[0].flatten() for m in linears if m.is_ternary])
    signal = sum(m.weight.square().sum().item() for m in linears)
    noise = sum((m.weight - m.codes()[0] * m.codes()[1]).square().sum().item() for m in linears)

    found = model.diagnostics()

    assert found["quant/zero_ratio"].item() == pytest.approx((codes == 0).float().mean().item())
    assert found["quant/plus_ratio"].item() == pytest.approx((codes > 0).float().mean().item())
    assert sum(found[name].item() for name in OCCUPANCY) == pytest.approx(1.0)
    assert found["quant/weight_sqnr_db"].item() == pytest.approx(
        10 * math.log10(signal / noise), abs=1e-3
    )


def test_a_row_without_a_code_counts_as_dead():
    """One row of one layer, as a share of all ternary rows."""
    model = make_model()
    model.apply_schedule(60, 100)
    linears = [m for m in model.modules() if isinstance(m, QuantizedLinear) and m.is_ternary]
    with torch.no_grad():
        linears[0].weight[0] = 0.0

    found = model.diagnostics()["quant/dead_rows_ratio"].item()

    assert found == pytest.approx(1 / sum(m.weight.shape[0] for m in linears))


def test_all_of_them_are_single_numbers_on_the_models_device():
    """So that the loop can stack them and copy once."""
    model = make_model()
    model.apply_schedule(60, 100)
    model(*make_batch())

    stacked = torch.stack(list(model.diagnostics().values()))

    assert stacked.shape == (11,)
    assert torch.isfinite(stacked).all()
