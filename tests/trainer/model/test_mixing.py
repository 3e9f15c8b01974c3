"""Mixers: orthogonal, fixed by their seed, and each within its span."""

import math

import pytest
import torch

from trainer.model import ModelConfig
from trainer.model.mixing import (
    BlockHadamard,
    SignedPermutation,
    hadamard_matrix,
    largest_block,
    make_mixer,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix_of(mixer: torch.nn.Module, channels: int) -> torch.Tensor:
    """The mixer as a matrix, row by row."""
    return mixer(torch.eye(channels))


@pytest.mark.parametrize("block", [1, 2, 8, 64])
def test_a_hadamard_matrix_is_orthogonal_with_entries_of_one_size(block):
    """H H^T = b I before it is scaled."""
    h = hadamard_matrix(block)

    torch.testing.assert_close(h @ h.T, torch.eye(block), rtol=0, atol=1e-5)
    torch.testing.assert_close(h.abs(), torch.full((block, block), block**-0.5))


def test_a_block_of_channels_becomes_signed_sums_of_itself():
    """y_j = sum_i x_i (-1)^(number of ones in i and j) / sqrt(b), block by block."""
    x = torch.randn(2, 24, dtype=torch.float64)

    y = BlockHadamard(8).double()(x)

    for row in range(2):
        for j in range(24):
            start = j // 8 * 8
            signed = [
                x[row, start + i].item() * (-1) ** (i & (j - start)).bit_count() for i in range(8)
            ]
            # The matrix is kept in float32.
            assert y[row, j].item() == pytest.approx(sum(signed) / math.sqrt(8), rel=1e-6)


@pytest.mark.parametrize(("channels", "block"), [(128, 64), (48, 16), (2304, 64), (7, 1)])
def test_the_block_is_the_largest_power_of_two_that_divides(channels, block):
    """And at most the one that is configured."""
    assert largest_block(channels, 64) == block


@pytest.mark.parametrize("kind", ["hadamard_dpd", "hadamard", "dpd", "none"])
def test_every_mixer_is_orthogonal(kind):
    """Lengths and angles survive, so it can be folded into the weight behind it."""
    config = ModelConfig.for_size("tiny", 100, mixers=kind)
    mixer = make_mixer(config, 128, 128, hadamard=True, generator=seeded())

    m = matrix_of(mixer, 128)

    torch.testing.assert_close(m @ m.T, torch.eye(128), rtol=0, atol=1e-5)
    assert torch.equal(m, torch.eye(128)) == (kind == "none")


def test_dpd_is_two_sign_changes_around_a_permutation():
    """Each row and column of its matrix holds one entry of size 1, with both signs used."""
    m = matrix_of(SignedPermutation(64, 64, seeded()), 64)

    assert (m.abs().sum(0) == 1).all()
    assert (m.abs().sum(1) == 1).all()
    assert set(m.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_dpd_is_its_three_factors_one_after_the_other():
    """y_c = D2_c * (D1 x)_order(c), with signs and permutation drawn as the seed says."""
    x = torch.randn(16, dtype=torch.float64)
    generator = seeded(7)
    order = [span + c for span in (0, 8) for c in torch.randperm(8, generator=generator).tolist()]
    first, second = (
        [2 * bit - 1 for bit in torch.randint(2, (16,), generator=generator).tolist()]
        for _ in range(2)
    )

    y = SignedPermutation(16, 8, seeded(7)).double()(x)

    for c in range(16):
        assert y[c].item() == second[c] * first[order[c]] * x[order[c]].item()


def test_a_permutation_keeps_to_its_span():
    """With the head size as span, no two heads are mixed."""
    m = matrix_of(SignedPermutation(64, 16, seeded()), 64).abs()

    for head in range(4):
        inside = slice(16 * head, 16 * head + 16)
        assert m[inside, inside].sum() == 16


def test_one_seed_gives_one_mixer_and_another_seed_another():
    """A run's seed decides it, and a checkpoint carries it."""
    x = torch.randn(3, 64)

    first, same, other = (SignedPermutation(64, 64, seeded(seed))(x) for seed in (1, 1, 2))

    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "make", [lambda: BlockHadamard(8), lambda: SignedPermutation(16, 8, seeded())]
)
def test_the_gradient_is_that_of_the_matrix(make):
    """Backward multiplies by the transpose, checked by finite differences."""
    mixer = make().double()
    x = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(mixer, x)
