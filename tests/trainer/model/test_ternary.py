"""Ternary weights and their gradients, against plain loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.model.ternary import (
    absmean_ternary,
    inverse_softplus,
    learned_ternary,
    paper_start,
    symmetric_start,
    ternary_codes,
)


def make_weights(seed: int, rows: int = 5, columns: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def reference_gradients(w, s, t, delta, g):
    """The stated sums, one weight at a time."""
    rows, n = w.shape
    ds, dt, ddelta = ([0.0] * rows for _ in range(3))
    for i in range(rows):
        for j in range(n):
            u = float(w[i, j] - t[i].detach())
            d, grad = float(delta[i].detach()), float(g[i, j])
            q = (u > d) - (u < -d)
            k = 1.0 / d if abs(abs(u) - d) < d / 2 else 0.0
            ds[i] += grad * q / math.sqrt(n)
            dt[i] -= float(s[i]) * grad * k / math.sqrt(n)
            ddelta[i] -= float(s[i]) * grad * math.copysign(1.0, u) * k / math.sqrt(n)
    return (torch.tensor(values, dtype=torch.float64)[:, None] for values in (ds, dt, ddelta))


@pytest.mark.parametrize("start", [symmetric_start, paper_start])
def test_a_dead_zone_that_is_nearly_gone_still_has_a_gradient(start):
    """At its least size hardly a row has a weight within half of it from its edge."""
    w = torch.randn(400, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale, threshold, dead_zone = start(w)
    gone = torch.full_like(dead_zone, 1e-6).requires_grad_()
    threshold.requires_grad_()
    g = torch.randn(w.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    learned_ternary(w, inverse_softplus(scale), threshold, gone, grad_clip=1.0).backward(g)

    assert (gone.grad != 0).double().mean() > 0.8
    assert (threshold.grad != 0).double().mean() > 0.8
    assert gone.grad.isfinite().all()


@pytest.mark.parametrize("start", [symmetric_start, paper_start])
def test_the_window_of_an_ordinary_dead_zone_is_that_of_the_formula(start):
    """Its bound acts on none of the rows as they start."""
    w = torch.randn(400, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    scale, _, dead_zone = start(w)

    assert (dead_zone > 0.02 * scale).all()


def columns_of(w, start=symmetric_start):
    scale, threshold, dead_zone = start(w)
    # A threshold off 0, so that its part in the formulas shows.
    threshold = threshold + 0.1
    return [x.requires_grad_() for x in (inverse_softplus(scale), threshold, dead_zone)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_weight_is_its_scale_times_the_sign_outside_of_the_dead_zone(seed):
    """q = 1(w - t > delta) - 1(w - t < -delta), weight by weight."""
    w = make_weights(seed)
    raw, threshold, dead_zone = columns_of(w)

    quantized = learned_ternary(w, raw, threshold, dead_zone, grad_clip=1.0)

    for i, j in [(i, j) for i in range(w.shape[0]) for j in range(w.shape[1])]:
        u, delta = w[i, j] - threshold[i, 0], dead_zone[i, 0]
        s = math.log1p(math.exp(raw[i, 0].item()))
        expected = s if u > delta else -s if u < -delta else 0.0
        assert quantized[i, j].item() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_gradients_are_the_stated_sums(seed):
    """ds, dt and ddelta of each row, and straight through for the weights."""
    w = make_weights(seed).requires_grad_()
    raw, threshold, dead_zone = columns_of(w.detach())
    g = make_weights(seed + 1)
    scale = torch.nn.functional.softplus(raw.detach())
    ds, dt, ddelta = reference_gradients(w.detach(), scale, threshold, dead_zone, g)

    learned_ternary(w, raw, threshold, dead_zone, grad_clip=1e9).backward(g)

    torch.testing.assert_close(w.grad, g, rtol=0, atol=0)
    torch.testing.assert_close(raw.grad, ds * torch.sigmoid(raw.detach()))
    torch.testing.assert_close(threshold.grad, dt)
    torch.testing.assert_close(dead_zone.grad, ddelta)


def test_the_gradients_of_the_columns_are_clipped_and_those_of_weights_are_not():
    """The clip is on s, t and delta, inside of backward."""
    w = make_weights(3).requires_grad_()
    raw, threshold, dead_zone = columns_of(w.detach())
    g = 100.0 * make_weights(4)

    learned_ternary(w, raw, threshold, dead_zone, grad_clip=0.5).backward(g)

    assert threshold.grad.abs().max() == 0.5
    assert dead_zone.grad.abs().max() == 0.5
    assert (raw.grad.abs() <= 0.5 * torch.sigmoid(raw.detach())).all()
    torch.testing.assert_close(w.grad, g, rtol=0, atol=0)


def test_a_dropped_weight_is_zero_and_tells_its_columns_nothing():
    """With every sign dropped nothing is left to learn a scale from."""
    w = make_weights(5).requires_grad_()
    raw, threshold, dead_zone = columns_of(w.detach())
    nothing = torch.zeros_like(w, dtype=torch.int16)

    quantized = learned_ternary(w, raw, threshold, dead_zone, grad_clip=1.0, kept=nothing)
    quantized.sum().backward()

    assert (quantized == 0).all()
    assert all((column.grad == 0).all() for column in (raw, threshold, dead_zone))
    assert (w.grad == 1).all()


def test_a_bypassed_weight_is_itself_and_tells_its_columns_nothing():
    """QDrop's choice is exact, and what took no part learns nothing from it."""
    w = make_weights(5).requires_grad_()
    raw, threshold, dead_zone = columns_of(w.detach())

    quantized = learned_ternary(w, raw, threshold, dead_zone, grad_clip=1.0, bypass=torch.ones(()))
    quantized.sum().backward()

    assert torch.equal(quantized, w)
    assert all((column.grad == 0).all() for column in (raw, threshold, dead_zone))
    assert (w.grad == 1).all()


def test_a_dead_zone_below_its_bound_stays_finite_and_keeps_its_gradient():
    """A negative dead zone acts as a tiny one, and can be learned back."""
    w = torch.tensor([[1.2e-6, 0.5, -0.5]], dtype=torch.float64, requires_grad=True)
    raw, threshold = (torch.zeros(1, 1, dtype=torch.float64, requires_grad=True) for _ in "st")
    dead_zone = torch.full((1, 1), -1.0, dtype=torch.float64, requires_grad=True)

    quantized = learned_ternary(w, raw, threshold, dead_zone, grad_clip=1.0)
    quantized.sum().backward()

    assert torch.isfinite(quantized).all()
    assert dead_zone.grad.item() == -1.0


def test_the_symmetric_start_is_by_its_formulas():
    """t = 0, delta = 0.75 E|w| and s = E[|w| : |w| > delta], row by row."""
    w = make_weights(6)

    scale, threshold, dead_zone = symmetric_start(w)

    for i, row in enumerate(w.tolist()):
        delta = 0.75 * sum(map(abs, row)) / len(row)
        kept = [abs(x) for x in row if abs(x) > delta]
        assert dead_zone[i].item() == pytest.approx(delta)
        assert scale[i].item() == pytest.approx(sum(kept) / len(kept))
    assert (threshold == 0).all()


def test_the_papers_start_is_a_skewed_binary_code_on_gaussian_rows():
    """Its threshold at the 30th percentile of |w| leaves almost no zeros."""
    w = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))

    codes = ternary_codes(w, *paper_start(w)[1:])

    assert (codes == -1).float().mean().item() == pytest.approx(0.64, abs=0.01)
    assert (codes == 0).float().mean().item() == pytest.approx(0.03, abs=0.01)


def test_the_symmetric_start_keeps_seven_decibels_of_gaussian_rows():
    """7.2 dB, where the absmean rule has 5.8 and the paper's start under 4."""
    w = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    scale, threshold, dead_zone = symmetric_start(w)

    found = sqnr_db(w, ternary_codes(w, threshold, dead_zone) * scale)

    codes, one_scale = absmean_ternary(w)
    assert found == pytest.approx(7.2, abs=0.1)
    assert sqnr_db(w, codes * one_scale) == pytest.approx(5.8, abs=0.1)
    scale, threshold, dead_zone = paper_start(w)
    assert 3 < sqnr_db(w, ternary_codes(w, threshold, dead_zone) * scale) < 4


def sqnr_db(w: torch.Tensor, quantized: torch.Tensor) -> float:
    return 10 * math.log10(w.square().sum() / (w - quantized).square().sum())


def test_absmean_rounds_by_one_scale_for_the_matrix():
    """Its scale is the mean magnitude, and half of it is where zero ends."""
    w = torch.tensor([[2.0, -0.4], [0.6, -1.0]])

    codes, scale = absmean_ternary(w)

    assert scale.item() == 1.0
    assert codes.tolist() == [[1.0, 0.0], [1.0, -1.0]]


@settings(deadline=None)
@given(s=st.floats(1e-6, 100.0))
def test_inverse_softplus_gives_back_the_scale(s):
    """Small and large scales alike come back through softplus."""
    value = torch.tensor(s, dtype=torch.float64)

    found = torch.nn.functional.softplus(inverse_softplus(value))

    assert found.item() == pytest.approx(s, rel=1e-6)
