"""QDyT against a plain loop, and its ramp in training and evaluation."""

import math

import pytest
import torch

from trainer.model import ModelConfig
from trainer.model.qdyt import QDyT
from trainer.model.schedule import ScheduleState

CONFIG = ModelConfig.for_size("tiny", 100, d_model=16, heads=2, group_size=8, pact_clip_init=1.5)


def make_norm(ramp: float = 1.0) -> QDyT:
    norm = QDyT(CONFIG).double()
    norm.apply_schedule(ScheduleState("warmup", 0.0, ramp, True, 0.0, 1.0))
    with torch.no_grad():
        norm.gamma.copy_(torch.linspace(0.5, 2.0, 16))
        norm.beta.copy_(torch.linspace(-1.0, 1.0, 16))
    return norm


def reference(norm: QDyT, x: torch.Tensor, ramp: float) -> torch.Tensor:
    """The formula, one token and channel at a time."""
    a = math.log1p(math.exp(norm.raw_clip.item()))
    out = torch.empty_like(x)
    for token in range(x.shape[0]):
        for c in range(16):
            group = x[token, c // 8 * 8 : c // 8 * 8 + 8].tolist()
            y = max(-a, min(a, x[token, c].item() - sum(group) / 8))
            squashed = math.tanh(norm.alpha.item() * ramp * y)
            out[token, c] = norm.gamma[c].item() * squashed + norm.beta[c].item()
    return out


@pytest.mark.parametrize("ramp", [0.1, 1.0])
def test_it_is_the_formula_at_any_place_of_the_ramp(ramp):
    """gamma * tanh(alpha * ramp * clip(x - mu, -a, a)) + beta, mu of each group."""
    norm = make_norm(ramp)
    x = 2.0 * torch.randn(5, 16, dtype=torch.float64)

    torch.testing.assert_close(norm(x), reference(norm, x, ramp))


def test_training_and_evaluation_see_one_and_the_same_alpha():
    """The ramp belongs to the step, not to the mode."""
    norm = make_norm(ramp=0.3)
    x = torch.randn(5, 16, dtype=torch.float64)

    assert torch.equal(norm.train()(x), norm.eval()(x))


def test_the_clip_starts_where_it_is_configured():
    """a = softplus(raw a)."""
    a = torch.nn.functional.softplus(QDyT(CONFIG).raw_clip)

    assert a.item() == pytest.approx(1.5)


def test_gradients_are_those_of_finite_differences():
    """For the input and for alpha, gamma, beta and the clip, clipped tokens included."""
    norm = make_norm()
    names = ["alpha", "raw_clip", "gamma", "beta"]
    x = 2.0 * torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    values = [getattr(norm, name).detach().clone().requires_grad_() for name in names]

    def call(x, *values):
        return torch.func.functional_call(norm, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))


def test_saturation_and_clipping_are_shares_of_the_sampled_tokens():
    """Read in training where it is asked for, on the rows that are named."""
    norm = QDyT(CONFIG)
    x = torch.cat([torch.zeros(1, 16), torch.tensor([-100.0, 100.0]).repeat(1, 8)])
    with torch.no_grad():
        norm.alpha.fill_(10.0)
    norm(x, torch.tensor([0, 1, 1, 1]))
    assert norm.readings == {}
    norm.observing = True

    norm(x, torch.tensor([0, 1, 1, 1]))

    assert norm.readings["tanh_saturation_ratio"] == 0.75
    assert norm.readings["pact_clip_ratio"] == 0.75
