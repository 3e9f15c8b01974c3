"""Calibration: what it averages, that it acts, and that it can be taken back."""

import pytest
import torch

from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.data.masking import Batch
from trainer.model.calibration import freeze_group_means, group_means, measure_group_means
from trainer.model.qdyt import QDyT


def make_batches(count: int = 3) -> list[Batch]:
    batches = []
    for seed in range(count):
        ids, mask, labels = make_batch(seed=seed)
        mask[0, 10:] = False
        labels[0, 10:] = -100
        batches.append(Batch(ids, mask, labels, torch.empty(0), 0))
    return batches


def test_the_means_are_running_averages_over_the_tokens_that_are_not_padding():
    """0.99 of what was, corrected for its start at 0; seen at the first norm of the encoder."""
    model = make_model().eval()
    seen = []
    handle = model.blocks[0].attention_norm.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach())
    )
    batches = make_batches()

    means = measure_group_means(model, batches)

    handle.remove()
    expected = 0.0
    for x, batch in zip(seen, batches, strict=True):
        tokens = x[batch.attention_mask].double()
        found = torch.stack([group.mean() for group in tokens.split(16, dim=1)])
        expected = 0.99 * expected + 0.01 * found
    expected /= 1 - 0.99**3
    torch.testing.assert_close(means["blocks.0.attention_norm"].double(), expected)
    assert len(means) == 8


def test_the_first_batch_counts_no_more_than_the_others():
    """One batch out of line among 32 moves the means by its share, wherever it comes."""
    model = make_model()
    [usual, other] = make_batches(2)
    means = [
        measure_group_means(model, order)["blocks.0.attention_norm"]
        for order in ([usual], [other, *[usual] * 31], [*[usual] * 31, other], [other])
    ]

    first, last = ((means[i] - means[0]) / (means[3] - means[0]) for i in (1, 2))

    torch.testing.assert_close(first.mean(), torch.tensor(1 / 32), rtol=0, atol=0.01)
    torch.testing.assert_close(last.mean(), torch.tensor(1 / 32), rtol=0, atol=0.01)


def test_a_batch_that_is_no_number_is_left_out():
    """An average would keep it for good."""
    model = make_model()
    batches = make_batches(2)
    expected = measure_group_means(model, batches)
    embed = model.embedding.register_forward_hook(
        lambda module, args, out: out * torch.nan if args[0] is spoiled.input_ids else out
    )
    spoiled = make_batches(3)[2]

    found = measure_group_means(model, [batches[0], spoiled, batches[1]])

    embed.remove()
    for name, means in expected.items():
        torch.testing.assert_close(found[name], means)


def test_a_calibrated_norm_subtracts_its_frozen_means():
    """gamma * tanh(alpha * clip(x - mu)) + beta with mu the same for all tokens."""
    norm = QDyT(make_model().config)
    freeze_group_means(norm, {"": torch.tensor([0.5, -1.0])})
    x = torch.randn(7, 32)

    out = norm(x)

    mu = torch.cat([torch.full((16,), 0.5), torch.full((16,), -1.0)])
    torch.testing.assert_close(out, torch.tanh(norm.alpha * (x - mu)))


def test_calibration_changes_the_logits_and_can_be_taken_back():
    """Parameters, buffers and state dict never know of it."""
    model = make_model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = make_batch(seed=9)
    plain = model(*batch).logits
    means = measure_group_means(model, make_batches())
    freeze_group_means(model, means)

    calibrated = model(*batch).logits

    assert set(group_means(model)) == set(means)
    assert not torch.allclose(calibrated, plain)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    freeze_group_means(model, {})
    assert torch.equal(model(*batch).logits, plain)


def test_measuring_leaves_mode_and_earlier_calibration_as_they_were():
    """And measures with the means a token in force, whatever is frozen."""
    model = make_model()
    first = measure_group_means(model, make_batches())
    freeze_group_means(model, first)

    second = measure_group_means(model, make_batches())

    assert model.training
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(value, first[name]) for name, value in group_means(model).items())


def test_without_a_batch_there_is_nothing_to_calibrate_with():
    """An empty dict would look like an encoder without QDyT."""
    with pytest.raises(ValueError, match="no batch"):
        measure_group_means(make_model(), [])
