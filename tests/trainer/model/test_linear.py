"""The linear layer through its stages: what bits its weight really has."""

import pytest
import torch

from trainer.model import ModelConfig
from trainer.model.linear import QuantizedLinear
from trainer.model.precision import StageBits
from trainer.model.schedule import ScheduleState

BITS = StageBits(8, 2, 2)


def state_with(stage, *, qdrop=0.0, dither=False, dropout=0.0) -> ScheduleState:
    return ScheduleState(stage, qdrop, 1.0, dither, dropout, 1.0)


def make_linear(bits=BITS, d_in=64, d_out=16, **overrides) -> QuantizedLinear:
    torch.manual_seed(0)
    return QuantizedLinear(ModelConfig.for_size("tiny", 100, **overrides), d_in, d_out, bits)


def weight_seen(linear: QuantizedLinear) -> torch.Tensor:
    """The weight that a forward pass multiplies by."""
    return linear(torch.eye(linear.weight.shape[1])).T.detach()


def levels_of_a_row(linear: QuantizedLinear) -> int:
    return max(len(row.unique()) for row in weight_seen(linear))


def test_initial_weights_have_a_variance_of_one_over_their_inputs():
    """N(0, 1 / d_in), so that a unit-variance input gives a unit-variance output."""
    linear = make_linear(d_in=1024, d_out=64)

    assert linear.weight.std().item() == pytest.approx(1024**-0.5, rel=0.02)


@pytest.mark.parametrize("mode", ["symmetric", "paper", "absmean"])
def test_a_ternary_row_has_no_more_than_three_levels(mode):
    """-s, 0 and s, and codes that say which."""
    linear = make_linear(weight_mode=mode)
    linear.apply_schedule(state_with("full_ternary"))

    codes, scale = linear.codes()

    assert levels_of_a_row(linear) <= 3
    assert set(codes.unique().tolist()) <= {-1.0, 0.0, 1.0}
    torch.testing.assert_close(weight_seen(linear), codes * scale)


def test_the_warmup_stage_has_int8_weights():
    """Far more than three levels, and within half a step of the weight."""
    linear = make_linear()
    linear.apply_schedule(state_with("warmup"))

    step = linear.weight.abs().amax(1, keepdim=True) / 127

    assert levels_of_a_row(linear) > 30
    assert ((weight_seen(linear) - linear.weight).abs() <= step / 2 + 1e-6).all()
    assert linear.codes()[0].abs().max() == 127


def test_dither_acts_in_training_and_not_in_evaluation():
    """Training sees new noise each time; evaluation repeats itself."""
    linear = make_linear()
    linear.apply_schedule(state_with("warmup", dither=True))

    assert not torch.equal(weight_seen(linear), weight_seen(linear))
    linear.eval()
    assert torch.equal(weight_seen(linear), weight_seen(linear))


def test_ternary_dropout_zeroes_its_share_of_the_signs_in_training():
    """A tenth of the signs are 0 in training that are not in evaluation."""
    linear = make_linear(d_in=512, d_out=256)
    linear.apply_schedule(state_with("full_ternary", dropout=0.1))

    kept = (weight_seen(linear) != 0).sum() / (weight_seen(linear.eval()) != 0).sum()

    assert kept.item() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("stage", ["warmup", "full_ternary"])
def test_qdrop_bypasses_the_weights_quantizer_in_training_only(stage):
    """At probability 1 training multiplies by the weight itself."""
    linear = make_linear()
    linear.apply_schedule(state_with(stage, qdrop=1.0))

    torch.testing.assert_close(weight_seen(linear), linear.weight.detach(), rtol=0, atol=0)
    assert not torch.equal(weight_seen(linear.eval()), linear.weight)


@pytest.mark.parametrize("mode", ["symmetric", "paper"])
def test_scale_threshold_and_dead_zone_get_gradients(mode):
    """Written as w + (q - w).detach() they would get none, and nothing would complain."""
    linear = make_linear(weight_mode=mode)
    linear.apply_schedule(state_with("full_ternary"))

    linear(torch.randn(8, 64)).square().sum().backward()

    for name, parameter in linear.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_idle_columns_have_gradients_of_zero_in_the_warmup_stage():
    """They must neither move nor be missing from a distributed reduction."""
    linear = make_linear()
    linear.apply_schedule(state_with("warmup"))

    linear(torch.randn(8, 64)).sum().backward()

    for column in (linear.raw_scale, linear.threshold, linear.dead_zone):
        assert column is not None
        assert (column.grad == 0).all()


def test_the_absmean_rule_has_nothing_to_learn_but_the_weight():
    """No parameter is there that would never get a gradient."""
    linear = make_linear(weight_mode="absmean")
    linear.apply_schedule(state_with("full_ternary", dropout=0.1))

    linear(torch.randn(8, 64)).sum().backward()

    assert [name for name, _ in linear.named_parameters()] == ["weight"]
    assert (linear.weight.grad != 0).any()


@pytest.mark.parametrize(("mode", "stage"), [("absmean", "full_ternary"), ("symmetric", "warmup")])
def test_what_learns_no_columns_passes_the_gradient_straight_through(mode, stage):
    """dL/dw = g^T x, as if there were no rounding; and g s q for the input."""
    linear = make_linear(weight_mode=mode).double()
    linear.apply_schedule(state_with(stage))
    x = torch.randn(8, 64, dtype=torch.float64, requires_grad=True)
    g = torch.randn(8, 16, dtype=torch.float64)

    linear(x).backward(g)

    codes, scale = linear.codes()
    torch.testing.assert_close(linear.weight.grad, g.T @ x.detach())
    torch.testing.assert_close(x.grad, g @ (codes * scale))


def test_a_site_that_is_never_ternary_has_no_ternary_columns():
    """Late V and O keep their bits, with the weight alone."""
    linear = make_linear(bits=StageBits(8, 6, 6))
    linear.apply_schedule(state_with("full_ternary"))

    assert [name for name, _ in linear.named_parameters()] == ["weight"]
    assert 3 < levels_of_a_row(linear) <= 63


def test_columns_start_from_the_weights_at_the_first_ternary_step():
    """Weights that grew in the int8 stage are not cut by the dead zone of the first step."""
    linear = make_linear()
    linear.apply_schedule(state_with("warmup"))
    with torch.no_grad():
        linear.weight.mul_(10.0)

    linear.apply_schedule(state_with("partial_ternary"))

    expected = 0.75 * linear.weight.abs().mean(1, keepdim=True)
    torch.testing.assert_close(linear.dead_zone.detach(), expected)


def test_columns_that_have_started_stay_as_they_are_learned():
    """Neither a later stage nor a resumed run starts them again."""
    linear = make_linear()
    linear.apply_schedule(state_with("warmup"))
    linear.apply_schedule(state_with("partial_ternary"))
    with torch.no_grad():
        linear.dead_zone.fill_(0.123)
    resumed = make_linear()
    resumed.apply_schedule(state_with("warmup"))
    resumed.load_state_dict(linear.state_dict())

    resumed.apply_schedule(state_with("full_ternary"))

    assert (resumed.dead_zone == 0.123).all()
