"""A block against plain loops, its residual scales, and which mixers stand where."""

import math

import pytest
import torch

from trainer.model import ModelConfig
from trainer.model.block import Block
from trainer.model.mixing import BlockHadamard, SignedPermutation

D, HEADS, WIDE, TOKENS = 8, 2, 12, 4


def make_block(layer: int = 0, **overrides) -> Block:
    torch.manual_seed(0)
    settings = {"d_model": D, "heads": HEADS, "d_ffn": WIDE, "group_size": 4, **overrides}
    config = ModelConfig.for_size("tiny", 100, **settings)
    return Block(config, layer, torch.Generator().manual_seed(0)).double()


def norm(token: list[float]) -> list[float]:
    mean = sum(token) / D
    variance = sum((value - mean) ** 2 for value in token) / D
    return [(value - mean) / math.sqrt(variance + 1e-5) for value in token]


def times(weight: torch.Tensor, token: list[float]) -> list[float]:
    return [sum(w * v for w, v in zip(row, token, strict=True)) for row in weight.tolist()]


def attend(block: Block, tokens: list[list[float]], visible: list[bool]) -> list[list[float]]:
    """softmax(q k / sqrt(D_head)) v of each head, over the keys that are visible."""
    q, k, v = (
        [times(getattr(block.attention, name).weight, token) for token in tokens]
        for name in ("q", "k", "v")
    )
    width = D // HEADS
    out = []
    for query in q:
        joined = []
        for head in range(HEADS):
            span = range(head * width, (head + 1) * width)
            scores = [sum(query[c] * key[c] for c in span) / math.sqrt(width) for key in k]
            weights = [math.exp(s) * seen for s, seen in zip(scores, visible, strict=True)]
            for c in span:
                mixed = sum(w * value[c] for w, value in zip(weights, v, strict=True))
                joined.append(mixed / sum(weights))
        out.append(times(block.attention.o.weight, joined))
    return out


def feed_forward(block: Block, token: list[float]) -> list[float]:
    """down(silu(gate) * up)."""
    gate, up = (times(getattr(block.ffn, name).weight, token) for name in ("gate", "up"))
    wide = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)]
    return times(block.ffn.down.weight, wide)


def test_a_block_is_attention_and_swiglu_each_on_a_scaled_residual():
    """x + zeta_1 * Attention(norm(x)), then x + zeta_2 * SwiGLU(norm(x)), without quantizers."""
    block = make_block(
        weight_mode="float", activation_mode="float", mixers="none", block_norm="layernorm"
    )
    with torch.no_grad():
        block.attention_zeta.fill_(0.3)
        block.ffn_zeta.fill_(0.7)
    x = torch.randn(1, TOKENS, D, dtype=torch.float64)
    visible = [True, True, False, True]

    found = block(x, torch.tensor(visible)[None, None, None, :], None)[0]

    tokens = x[0].tolist()
    attended = attend(block, [norm(token) for token in tokens], visible)
    for position, token in enumerate(tokens):
        middle = [a + 0.3 * b for a, b in zip(token, attended[position], strict=True)]
        fed = feed_forward(block, norm(middle))
        expected = [a + 0.7 * b for a, b in zip(middle, fed, strict=True)]
        assert found[position].tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("layers", [2, 8])
def test_the_residual_scales_start_small_and_learn(layers):
    """skip_init_scale / sqrt(layers), so that deep encoders start near the identity."""
    block = make_block(layers=layers, skip_init_scale=0.4)
    mask = torch.ones(1, 1, 1, TOKENS, dtype=torch.bool)

    block(torch.randn(1, TOKENS, D, dtype=torch.float64), mask, None).square().sum().backward()

    for zeta in block.zetas():
        assert zeta.item() == pytest.approx(0.4 / math.sqrt(layers))
        assert zeta.grad != 0


def test_every_mixer_stands_before_its_projection_and_blocks_of_hadamard_alternate():
    """Per head before Q, K and V; DPD in every feed-forward, Hadamard in every other one."""
    for layer in range(4):
        block = make_block(layer, d_model=32, d_ffn=64)
        attention, before_up, before_down = (
            [type(part) for part in mixer]
            for mixer in (block.attention.mixer, block.ffn.mixer, block.ffn.down_mixer)
        )

        alternating = [SignedPermutation] + [BlockHadamard] * (layer % 2 == 0)
        assert attention == [SignedPermutation, BlockHadamard]
        assert before_up == before_down == alternating
        assert block.attention.mixer[1].matrix.shape[0] == 32 // HEADS
