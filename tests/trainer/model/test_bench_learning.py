"""bench/learning.py: its variants can be built, and its table says what the runs said."""

import pytest
import torch

from bench.learning import Result, table, windows
from bench.learning_variants import VARIANTS
from trainer.model import BitNetQDyT, ModelConfig

BASE = ModelConfig.for_size("tiny", 20, d_model=32, d_ffn=64, layers=2, max_length=16)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_an_encoder_and_differs_from_the_shipped_one(name):
    """A change that changes nothing would be an ablation of nothing."""
    config = VARIANTS[name].configure(BASE)

    BitNetQDyT(config)

    assert (config == BASE) == (name == "ternary")


def test_the_table_compares_means_over_seeds():
    """Against dense and against the own float form; what was not run has no row."""
    runs = [("dense", 0, 2.0), ("ternary", 0, 1.9), ("ternary", 1, 2.0), ("float", 0, 1.5)]
    results = [Result(name, seed, [10], [loss], None, 1.0) for name, seed, loss in runs]

    lines = table(results, 2.9).splitlines()

    assert len(lines) == 2 + 3 + 2
    ternary = next(line for line in lines if "shipped" in line)
    assert "| 0, 1 | 1.950 | 1.900 to 2.000 | -2.5 % | +30.0 % |" in ternary


def test_windows_are_stretches_of_the_text():
    """Consecutive characters from random places, all within it."""
    rows = windows(torch.arange(50), 8, 6, torch.Generator().manual_seed(0))

    assert rows.shape == (8, 6)
    assert (rows[:, 1:] - rows[:, :-1] == 1).all()
    assert rows.min() >= 0 and rows.max() < 50
