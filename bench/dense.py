"""The encoder that a step is compared with: dense, in float32, and as plain as can be.

In: a model configuration, for its dimensions alone.
Out: a masked-language model with the same call as ours.
Never: quantizes, mixes or observes anything.

Pre-norm LayerNorm, fused attention, SwiGLU, learned positions, an untied head on the
predicted positions only: what one would write in its place.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model import ModelConfig


class DenseBlock(nn.Module):
    """Attention and a gated feed-forward, each on a residual."""

    def __init__(self, d: int, heads: int, wide: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.up, self.gate = nn.Linear(d, wide, bias=False), nn.Linear(d, wide, bias=False)
        self.down = nn.Linear(wide, d, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, S, d) -> (B, S, d)."""
        y = self.attention_norm(x)
        q, k, v = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o(attended.transpose(1, 2).flatten(-2))
        y = self.ffn_norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class DenseEncoder(nn.Module):
    """The same dimensions as a BitNetQDyT of the configuration."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.token = nn.Embedding(config.vocab_size, d)
        self.position = nn.Embedding(config.max_length, d)
        self.embedding_norm, self.final_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.blocks = nn.ModuleList(
            DenseBlock(d, config.heads, config.d_ffn) for _ in range(config.layers)
        )
        self.head = nn.Linear(d, config.vocab_size)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor, predicted: Tensor) -> Any:
        """The loss of the predicted positions."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.embedding_norm(self.token(ids) + self.position(places))
        for block in self.blocks:
            x = block(x, mask[:, None, None, :])
        hidden = self.final_norm(x.flatten(0, 1).index_select(0, predicted))
        logits = self.head(hidden)
        targets = labels.flatten().index_select(0, predicted)
        return SimpleNamespace(loss=F.cross_entropy(logits.float(), targets))

    def set_loss_scale(self, scale: Tensor) -> None:
        """Nothing here clips within backward."""
