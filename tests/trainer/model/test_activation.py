"""Activation ranges and rounding, against torch.quantile and plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.model import ModelConfig
from trainer.model.activation import (
    ActivationQuantizer,
    quantize_activation,
    sample_rows,
    upper_percentile,
)
from trainer.model.precision import StageBits
from trainer.model.schedule import ScheduleState

CONFIG = ModelConfig.for_size("tiny", 100, percentile_momentum=0.95)
BITS = StageBits(8, 4, 4)


def state_with(stage="full_ternary", qdrop=0.0) -> ScheduleState:
    return ScheduleState(stage, qdrop, 1.0, False, 0.0, 1.0)


def make_quantizer(channels=6, **state) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(CONFIG, channels, BITS)
    quantizer.apply_schedule(state_with(**state))
    return quantizer


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 300),
    percentile=st.one_of(st.sampled_from([50.0, 99.5, 99.7, 100.0]), st.floats(50.0, 100.0)),
)
def test_the_percentile_is_hazens_of_numpy(n, percentile):
    """Linear interpolation between the same two values, for any sample size."""
    values = torch.randn(3, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)

    found = upper_percentile(values.abs(), percentile)

    expected = np.quantile(values.abs().numpy(), percentile / 100, axis=1, method="hazen")
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("percentile", [99.0, 99.5, 99.7])
def test_a_range_overloads_as_much_as_its_percentile_says(percentile):
    """The average of many samples of 256, on normal data: 0.30 % beyond p = 99.7, not 0.49."""
    values = torch.randn(20_000, 256, generator=torch.Generator().manual_seed(0)).abs()

    mean = upper_percentile(values, percentile).mean().item()

    overload = math.erfc(mean / math.sqrt(2))
    assert overload == pytest.approx(1 - percentile / 100, rel=0.06)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("is_first", [True, False])
def test_an_activation_that_is_no_number_does_not_stay_in_the_range(bad, is_first):
    """Its channel keeps the range it had in that step, and follows the data again afterwards."""
    quantizer, undisturbed = make_quantizer(), make_quantizer()
    batches = [torch.randn(50, 6) for _ in range(200)]
    spoiled = batches[0].clone()
    spoiled[7, 2] = bad
    first = [spoiled] if is_first else [batches[0], spoiled]

    for x in [*first, *batches[1:]]:
        quantizer(x)
    for x in batches:
        undisturbed(x)

    assert quantizer.rho.isfinite().all()
    torch.testing.assert_close(quantizer.rho, undisturbed.rho, rtol=1e-3, atol=1e-3)
    assert quantizer.start_rho.isfinite().all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_evaluation_rounds_to_the_nearest_level(bits):
    """Q_b of each element, by its channel's own step."""
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = torch.linspace(0.1, 0.5, 5, dtype=torch.float64)
    level = 2 ** (bits - 1) - 1

    found = quantize_activation(x, steps, bits, stochastic=False)

    for i in range(7):
        for c in range(5):
            code = max(-level, min(level, round(x[i, c].item() / steps[c].item())))
            assert found[i, c].item() == pytest.approx(steps[c].item() * code)


def test_the_gradient_passes_inside_of_the_range_and_not_outside():
    """Straight through where |x / step| <= L, the bound included."""
    x = torch.tensor([[-0.8, -0.7, 0.0, 0.7, 0.71]], dtype=torch.float64, requires_grad=True)
    steps = torch.full((5,), 0.1, dtype=torch.float64)

    quantize_activation(x, steps, 4, stochastic=True).sum().backward()

    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]


def test_stochastic_rounding_is_right_on_average():
    """The mean of many roundings is the value, where nearest is off by up to half a step."""
    torch.manual_seed(0)
    x = torch.tensor([0.13, -0.29, 0.5]).expand(20_000, 3)

    found = quantize_activation(x, torch.full((3,), 0.2), 4, stochastic=True)

    torch.testing.assert_close(found.mean(0), x[0], rtol=0, atol=0.004)
    assert set((found / 0.2).round().unique().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0, 3.0}


def test_the_range_starts_at_the_first_observation_and_then_moves_slowly():
    """rho = p, then 0.95 rho + 0.05 p, channel by channel."""
    quantizer = make_quantizer()
    first, second = torch.randn(50, 6), 3.0 * torch.randn(50, 6)

    quantizer(first)
    after_first = quantizer.rho.clone()
    quantizer(second)

    # Of 50 values the 99.7th percentile is the largest.
    p1, p2 = (x.abs().amax(dim=0) for x in (first, second))
    torch.testing.assert_close(after_first, p1)
    torch.testing.assert_close(quantizer.rho, 0.95 * p1 + 0.05 * p2)


def test_heads_share_one_range_over_their_channels():
    """With three channels a range, two heads of three have two ranges."""
    quantizer = ActivationQuantizer(CONFIG, 6, BITS, channels_per_range=3)
    x = torch.randn(50, 6) * torch.tensor([1.0, 1, 1, 5, 5, 5])

    quantizer(x)

    expected = torch.stack([x[:, :3].abs().flatten(), x[:, 3:].abs().flatten()])
    torch.testing.assert_close(quantizer.rho, upper_percentile(expected, 99.7))
    torch.testing.assert_close(
        quantizer.steps(quantizer.bits), (quantizer.rho / 7).repeat_interleave(3)
    )


def test_evaluation_leaves_the_ranges_alone_and_repeats_itself():
    """Two passes over the same data give the same, whatever was seen between."""
    quantizer = make_quantizer()
    x = torch.randn(50, 6)
    quantizer(x)
    quantizer.eval()

    first = quantizer(x)
    quantizer(100.0 * x)

    assert torch.equal(quantizer(x), first)


def test_an_evaluation_before_any_training_still_sees_its_input():
    """An untrained range is that of unit-variance data, not 0."""
    quantizer = make_quantizer().eval()
    x = torch.randn(50, 6)

    assert (quantizer(x) - x).abs().max() <= 4.0 / 7 / 2 + (x.abs().max() - 4.0).clamp(min=0)


def test_no_rows_at_all_are_no_observation():
    """A batch with nothing to predict reaches the head with no rows."""
    quantizer = make_quantizer()

    out = quantizer(torch.empty(0, 6))

    assert out.shape == (0, 6)
    assert not quantizer.observed


def test_the_input_is_left_as_it_was():
    """Ranges are read from magnitudes, and the caller keeps the signs."""
    quantizer = make_quantizer()
    x = torch.randn(50, 6)
    before = x.clone()

    quantizer(x)

    assert torch.equal(x, before)


def test_a_channel_of_zeros_stays_zero():
    """A dead channel has a range of 0 and must not divide by it."""
    quantizer = make_quantizer()
    x = torch.randn(50, 6) * torch.tensor([0.0, 1, 1, 1, 1, 1])

    out = quantizer(x)

    assert torch.isfinite(out).all()
    assert (out[:, 0] == 0).all()


def test_the_bits_in_force_are_those_of_the_stage():
    """Int8 has up to 255 values a channel in the warmup stage, int4 15 afterwards."""
    x = torch.randn(5000, 1)
    counts = []
    for stage in ("warmup", "partial_ternary", "full_ternary"):
        quantizer = make_quantizer(channels=1, stage=stage)
        counts.append(len(quantizer(x).unique()))

    assert 100 < counts[0] <= 255
    assert counts[1:] == [15, 15]


def test_qdrop_bypasses_the_quantizer_in_training_only():
    """At probability 1 training sees the input itself, and evaluation never does."""
    quantizer = make_quantizer(qdrop=1.0)
    x = torch.randn(50, 6)

    in_training = quantizer(x)
    in_evaluation = quantizer.eval()(x)

    assert torch.equal(in_training, x)
    assert not torch.equal(in_evaluation, x)
    assert quantizer.bypassed == 1.0


def test_a_bypassed_quantizer_lets_the_gradient_through_beyond_its_range():
    """What was not clipped has no reason to be without gradient."""
    x = torch.tensor([[0.1, 9.0]], requires_grad=True)

    for bypass, expected in ((0.0, [1.0, 0.0]), (1.0, [1.0, 1.0])):
        x.grad = None
        steps, choice = torch.tensor([0.1, 0.1]), torch.tensor(bypass)
        quantize_activation(x, steps, 4, stochastic=False, bypass=choice).sum().backward()

        assert x.grad.tolist() == [expected]


def test_qdrop_bypasses_about_as_often_as_its_probability():
    """Each mini-batch is decided anew."""
    torch.manual_seed(0)
    quantizer = make_quantizer(qdrop=0.25)
    x = torch.randn(4, 6)

    bypassed = [torch.equal(quantizer(x), x) for _ in range(400)]

    assert sum(bypassed) / 400 == pytest.approx(0.25, abs=0.07)


@settings(max_examples=30, deadline=None)
@given(valid=st.lists(st.booleans(), min_size=1, max_size=600).filter(any))
def test_only_valid_rows_are_sampled_and_evenly(valid):
    """Padding is never looked at; too few valid rows are repeated in turn."""
    mask = torch.tensor(valid)

    rows = sample_rows(mask)

    assert len(rows) == min(len(valid), 256)
    assert mask[rows].all()
    counts = torch.bincount(rows)
    assert counts.max() - counts[rows].min() <= 1


def test_a_batch_of_nothing_but_padding_can_be_sampled():
    """The sample is then of no use, but of the right size."""
    assert len(sample_rows(torch.zeros(10, dtype=torch.bool))) == 10
