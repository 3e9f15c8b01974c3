"""Diagnostics: what they are called, what they are, and when they are left out."""

import math

import pytest
import torch

from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.model.diagnostics.diagnostics import Diagnostics
from trainer.model.linear import QuantizedLinear

OCCUPANCY = {"quant/zero_ratio", "quant/plus_ratio", "quant/minus_ratio"}


def test_occupancy_is_left_out_while_nothing_is_ternary():
    """A missing reading is missing, never a 0 that a chart would draw."""
    model = make_model()
    model.apply_schedule(0, 100)

    found = Diagnostics(model).collect()

    assert not OCCUPANCY & set(found)
    assert found["quant/weight_bits_mean"] == 8.0
    assert found["quant/activation_bits_mean"] == 8.0


def test_readings_of_activations_are_left_out_before_an_observed_forward():
    """Overload, saturation and the heads' logits need a batch, and a word to look at it."""
    model = make_model()
    model(*make_batch())
    before = Diagnostics(model).collect()
    Diagnostics(model).observe(True)
    model(*make_batch())

    after = Diagnostics(model).collect()

    observed = {
        "quant/activation_overload_rate",
        "quant/activation_sqnr_db",
        "quant/codebook_utilization_ratio",
        "quant/dead_channels_ratio",
        "quant/tanh_saturation_ratio",
        "quant/pact_clip_ratio",
        "quant/attention_logit_max",
        "quant/attention_entropy_nats",
    }
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

    found = Diagnostics(model).collect()

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

    found = Diagnostics(model).collect()["quant/dead_rows_ratio"].item()

    assert found == pytest.approx(1 / sum(m.weight.shape[0] for m in linears))


@pytest.mark.parametrize("step", [0, 20, 60])
def test_all_of_them_are_single_finite_numbers_that_stack_into_one_vector(step):
    """So that the loop can copy them at once; in every stage, with and without detail."""
    model = make_model()
    model.apply_schedule(step, 100)
    Diagnostics(model).observe(True)
    model(*make_batch()).loss.backward()
    aggregates = Diagnostics(model).collect()

    detailed = Diagnostics(model).collect(detail=True)

    assert all(value.shape == () for value in detailed.values())
    assert torch.isfinite(torch.stack(list(detailed.values()))).all()
    assert set(aggregates) <= set(detailed)


def test_detail_names_each_layer_and_adds_up_to_the_aggregates():
    """quant/layers.3.ffn.up/zero_ratio and its like, and heads by number."""
    model = make_model()
    model.apply_schedule(60, 100)
    Diagnostics(model).observe(True)
    model(*make_batch())

    found = Diagnostics(model).collect(detail=True)

    for name in (
        "quant/layers.3.ffn.up/zero_ratio",
        "quant/layers.0.attention.q/weight_sqnr_db",
        "quant/layers.1.ffn.down_input/codebook_utilization_ratio",
        "quant/layers.2.attention/head_1_entropy_nats",
        "quant/layers.2.attention_norm/tanh_saturation_ratio",
        "quant/head.input/overload_ratio",
    ):
        assert name in found, name
    overloads = [v for n, v in found.items() if n.endswith("/overload_ratio")]
    assert len(overloads) == 6 * 4 + 1
    torch.testing.assert_close(
        found["quant/activation_overload_rate"], torch.stack(overloads).mean()
    )
    assert found["quant/layers.0.ffn.up/bits"].item() == pytest.approx(math.log2(3))
    assert found["quant/layers.3.attention.o/bits"] == 8
    assert found["quant/layers.0.ffn.up_input/bits"] == 4
    assert found["quant/layers.0.ffn.up_input/bypassed"] == 0
    # V and O of the last block are not ternary, and so have no occupancy.
    assert "quant/layers.3.attention.v/zero_ratio" not in found
    assert "quant/layers.3.attention.v/weight_sqnr_db" in found


def test_observing_changes_nothing_of_what_is_computed():
    """Same loss, same gradients, same random numbers."""
    results = []
    for observing in (False, True):
        model = make_model(qdrop_prob_initial=0.3)
        model.apply_schedule(20, 100)
        Diagnostics(model).observe(observing)
        torch.manual_seed(5)
        loss = model(*make_batch()).loss
        loss.backward()
        results.append((loss.item(), model.blocks[0].ffn.up.weight.grad, torch.rand(1).item()))

    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


def test_flips_are_the_share_of_codes_that_change_in_a_step():
    """One layer of 27 ternary ones has all signs reversed in each of three watched steps."""
    model = make_model()
    diagnostics = Diagnostics(model)
    up = model.blocks[0].ffn.up
    model.apply_schedule(60, 100)
    is_coded = (up.codes()[0] != 0).float().mean().item()
    for step in (60, 61, 62):
        diagnostics.watch_codes(step)
        with torch.no_grad():
            up.weight.neg_()
    diagnostics.watch_codes(63)

    found = diagnostics.collect(detail=True)

    assert found["quant/layers.0.ffn.up/flip_rate_per_step"].item() == pytest.approx(is_coded)
    assert found["quant/layers.0.ffn.gate/flip_rate_per_step"] == 0
    linears = [m for m in model.modules() if isinstance(m, QuantizedLinear) and m.is_ternary]
    expected = is_coded / len(linears)
    assert found["quant/flip_rate_per_step"].item() == pytest.approx(expected)
    assert found["quant/oscillating_ratio"].item() == pytest.approx(expected)
    assert found["quant/layers.0.ffn.up/oscillating_ratio"].item() == pytest.approx(is_coded)


def test_drift_is_the_largest_ratio_to_where_it_started():
    """One scale doubled, one dead zone quartered, one alpha and one zeta halved."""
    model = make_model()
    model.apply_schedule(20, 100)
    model.apply_schedule(60, 100)
    down = model.blocks[1].ffn.down
    with torch.no_grad():
        scale = torch.nn.functional.softplus(down.raw_scale[3])
        down.raw_scale[3] = torch.log(torch.expm1(2.0 * scale))
        down.dead_zone[0] /= 4.0
        model.blocks[2].ffn_norm.alpha /= 2.0
        model.blocks[0].ffn_zeta /= 2.0

    found = {name: value.item() for name, value in Diagnostics(model).collect().items()}

    assert found["quant/scale_drift_max"] == pytest.approx(math.log(2), rel=1e-4)
    assert found["quant/dead_zone_drift_max"] == pytest.approx(math.log(4), rel=1e-4)
    assert found["quant/alpha_drift_max"] == pytest.approx(math.log(2), rel=1e-4)
    assert found["quant/zeta_drift_max"] == pytest.approx(math.log(2), rel=1e-4)


def test_crowding_is_the_share_of_weights_near_the_edge_of_the_dead_zone():
    """Within a tenth of it, on either side; counted one weight at a time."""
    model = make_model()
    model.apply_schedule(60, 100)
    up = model.blocks[0].ffn.up
    crowded = 0
    for row, t, delta in zip(
        up.weight.tolist(), up.threshold.tolist(), up.dead_zone.tolist(), strict=True
    ):
        crowded += sum(abs(abs(w - t[0]) - delta[0]) < 0.1 * delta[0] for w in row)

    found = Diagnostics(model).collect(detail=True)

    assert found["quant/layers.0.ffn.up/threshold_crowding_ratio"].item() == pytest.approx(
        crowded / up.weight.numel()
    )


def test_gradient_shares_are_of_the_squared_norm_and_missing_ones_are_counted():
    """Against sums over the parameters; the clip of PACT has none while nothing is clipped."""
    model = make_model()
    model.apply_schedule(60, 100)
    assert "quant/gradient_missing_ratio" not in Diagnostics(model).collect()
    model(*make_batch()).loss.backward()
    graded = dict(model.named_parameters())
    total = sum(p.grad.square().sum().item() for p in graded.values())
    thresholds = [p for n, p in graded.items() if n.endswith("threshold")]
    active = [name for name in graded if not name.endswith("raw_clip")]
    assert any(not graded[name].grad.any() for name in graded.keys() - set(active))

    found = Diagnostics(model).collect()

    expected = sum(p.grad.square().sum().item() for p in thresholds) / total
    assert found["quant/gradient_share_threshold_ratio"].item() == pytest.approx(expected, rel=1e-4)
    assert found["quant/gradient_missing_ratio"] == 0
    model.blocks[0].ffn.up.weight.grad = None
    more = Diagnostics(model).collect()["quant/gradient_missing_ratio"].item()
    assert more == pytest.approx(1 / len(active))


def test_idle_columns_do_not_count_as_without_gradient():
    """In the int8 stage no scale or threshold acts, and that is no fault."""
    model = make_model()
    model.apply_schedule(0, 100)
    model(*make_batch()).loss.backward()

    missing = Diagnostics(model).collect()["quant/gradient_missing_ratio"].item()

    assert missing == 0
