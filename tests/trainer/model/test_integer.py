"""Integer weights and the random numbers of their dither."""

import pytest
import torch

from trainer.model.integer import integer_codes, integer_weights, largest_level
from trainer.model.noise import centred_uniform_like, random_mask_like


def test_each_group_of_a_row_is_rounded_by_its_own_largest_magnitude():
    """Q_b(u; step) = step * clip(round(u / step), -L, L), element by element."""
    w = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    found = integer_weights(w, 4, group=4)

    for i in range(3):
        for start in (0, 4):
            group = w[i, start : start + 4]
            step = group.abs().max() / 7
            expected = step * (group / step).round().clamp(-7, 7)
            torch.testing.assert_close(found[i, start : start + 4], expected)


@pytest.mark.parametrize(("bits", "level"), [(2, 1), (4, 7), (8, 127)])
def test_the_largest_level_leaves_the_code_symmetric(bits, level):
    """One of the 2^b codes stays unused, so that -L mirrors L."""
    assert largest_level(bits) == level


def test_a_row_of_zeros_stays_zero():
    """No scale can be read from it, and none is needed."""
    assert (integer_weights(torch.zeros(2, 4), 8) == 0).all()


def test_gradients_pass_straight_through_and_idle_columns_get_zero():
    """An idle column has a gradient, though it has no influence."""
    w = torch.randn(3, 8, requires_grad=True)
    idle = torch.ones(3, 1, requires_grad=True)

    integer_weights(w, 8, idle=(idle,)).sum().backward()

    assert (w.grad == 1).all()
    assert (idle.grad == 0).all()


def test_dither_makes_the_mean_of_many_roundings_the_weight_itself():
    """Rounding with uniform noise of one step is right on average."""
    torch.manual_seed(0)
    w = torch.tensor([[1.0, 0.3, -0.45, 0.05]])
    rounded = [integer_codes(w, 3, dither=True) for _ in range(4000)]

    mean = torch.stack([codes * step for codes, step in rounded]).mean(0).flatten()

    torch.testing.assert_close(mean[1:], w[0, 1:], rtol=0, atol=0.02)


def test_centred_noise_is_uniform_over_one_step():
    """Within [-1/2, 1/2), of mean 0 and variance 1/12, and without visible order."""
    torch.manual_seed(0)

    noise = centred_uniform_like(torch.empty(1001, 101))

    assert noise.shape == (1001, 101)
    assert noise.min() >= -0.5
    assert noise.max() < 0.5
    assert noise.mean().abs() < 0.005
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.02)
    assert (noise[:, :-1] * noise[:, 1:]).mean().abs() < 0.002


@pytest.mark.parametrize("probability", [0.0, 0.05, 0.5])
def test_a_random_mask_is_1_as_often_as_asked(probability):
    """Counted over a hundred thousand elements."""
    torch.manual_seed(0)

    found = random_mask_like(torch.empty(1000, 100), probability).float().mean().item()

    assert found == pytest.approx(probability, abs=0.005)
