"""The weight cache: one quantization for several forwards, and the gradients of each."""

from __future__ import annotations

import pytest
import torch

from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.weight_cache import QuantizesWeight, quantized_once

VOCABULARY = 40


def make_model(step: int, **options) -> BitNetQDyT:
    """With nothing random in its activations; float64, so that sums can be compared."""
    torch.manual_seed(0)
    config = ModelConfig.for_size("tiny", VOCABULARY, layers=2, activation_mode="float", **options)
    model = BitNetQDyT(config).double()
    model.apply_schedule(step, 100)
    return model


def random_batch(rows: int):
    ids = torch.randint(5, VOCABULARY, (rows, 16), generator=torch.Generator().manual_seed(rows))
    labels = torch.where(torch.arange(16) % 3 == 0, ids, -100)
    return ids, torch.ones_like(ids, dtype=torch.bool), labels


def test_every_forward_sees_the_same_weight_and_later_ones_another():
    """Dither makes each quantization differ from the one before."""
    model = make_model(step=0)
    linear = model.blocks[0].ffn.up
    assert linear.dither

    with quantized_once(model):
        first, second = linear.weight_in_force(), linear.weight_in_force()
    later = linear.weight_in_force()

    assert first is second
    assert not torch.equal(first, later)


@pytest.mark.parametrize("step", [0, 90], ids=["warmup", "full_ternary"])
def test_the_gradients_are_those_of_one_batch_also_where_the_clip_bites(step):
    """Clipped once a step: the clip of each part would bite less often than that of the sum."""
    parts = [random_batch(1), random_batch(3)]
    whole = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    options = {"lsq_grad_clip": 1e-5, "qdrop_prob_initial": 0.0}
    one, held = make_model(step, **options), make_model(step, **options)
    predicted = [int((labels != -100).sum()) for _, _, labels in parts]

    torch.manual_seed(1)
    with quantized_once(one):
        one(*whole).loss.backward()
    torch.manual_seed(1)
    with quantized_once(held):
        for part, count in zip(parts, predicted, strict=True):
            (held(*part).loss * count / sum(predicted)).backward()

    expected = dict(one.named_parameters())
    for name, parameter in held.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-9, atol=1e-12)
    if step:
        clipped = torch.cat([linear.threshold.grad for linear in ternary(held)])
        assert (clipped.abs() == 1e-5).any()


def test_alone_a_held_weight_gets_the_gradient_of_an_ordinary_forward():
    """To hold a weight changes nothing in a step of one batch."""
    batch = random_batch(2)
    plain, held = make_model(90), make_model(90)

    plain(*batch).loss.backward()
    with quantized_once(held):
        held(*batch).loss.backward()

    expected = dict(plain.named_parameters())
    for name, parameter in held.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-9, atol=1e-12)


def test_an_error_within_leaves_nothing_held_and_no_gradient():
    """The next forward, an evaluation perhaps, must not see a weight of before."""
    model = make_model(90)

    with pytest.raises(ZeroDivisionError), quantized_once(model):
        model(*random_batch(1)).loss.backward()
        raise ZeroDivisionError

    modules = [module for module in model.modules() if isinstance(module, QuantizesWeight)]
    assert len(modules) == 15
    assert all(module.release() is None for module in modules)
    assert model.blocks[0].attention.q.weight.grad is None


def ternary(model: BitNetQDyT):
    return [module for module in model.modules() if getattr(module, "is_ternary", False)]
