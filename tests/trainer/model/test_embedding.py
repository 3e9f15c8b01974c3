"""Embedding and head: the start of the positions, and integers in groups of a row."""

import math

import pytest
import torch

from trainer.model import ModelConfig
from trainer.model.embedding import Embedding, LanguageModelHead, sinusoids

CONFIG = ModelConfig.for_size("tiny", 50, embedding_bits=4, head_bits=4)


def test_positions_start_as_sinusoids_of_the_variance_of_the_tokens():
    """sqrt(2 / d) times sine and cosine of falling frequencies, channel by channel."""
    table = sinusoids(20, 8)

    for position in range(20):
        for channel in range(8):
            angle = position / 10_000 ** (channel // 2 * 2 / 8)
            wave = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel].item() == pytest.approx(wave * 0.5, abs=1e-5)
    torch.testing.assert_close(table.square().mean(1), torch.full((20,), 1 / 8))


def test_an_embedded_token_is_on_the_levels_of_its_groups():
    """Before the norm, each group of 64 channels has at most 15 levels at 4 bits."""
    embedding = Embedding(CONFIG)
    embedding.norm = torch.nn.Identity()  # type: ignore[assignment]
    embedding.norm.forward = lambda x, rows: x
    with torch.no_grad():
        embedding.position.zero_()

    out = embedding(torch.arange(50)[None], None)[0]

    assert max(len(group.unique()) for group in out.reshape(-1, 64)) <= 15
    assert len(out.unique()) > 100


def test_the_heads_weight_is_on_the_levels_of_its_groups():
    """Seen through logits of unit vectors, and of which the bias is not a part."""
    head = LanguageModelHead(CONFIG).eval()
    head.norm = torch.nn.Identity()  # type: ignore[assignment]
    head.norm.forward = lambda x, rows: x
    head.input = torch.nn.Identity()  # type: ignore[assignment]

    weight = head(torch.eye(128)).T

    assert max(len(group.unique()) for group in weight.reshape(-1, 64)) <= 15
    assert len(weight.unique()) > 100
