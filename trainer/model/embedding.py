"""Embedding and head: the first and the last layer of the encoder.

In: token ids, or the hidden states of the positions to be predicted.
Out: the residual stream, or logits over the vocabulary.
Never: has ternary weights; they are integers with one scale for each group of a row.

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention". Departure: we have LayerNorm after the embedding
and before the head; the source has QDyT there too, which learns far more slowly.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.activation import ActivationQuantizer
from trainer.model.config import ModelConfig
from trainer.model.integer import integer_weights
from trainer.model.mixing import largest_block
from trainer.model.norms import make_norm
from trainer.model.precision import ScheduledModule, table_stage_bits
from trainer.model.schedule import ScheduleState
from trainer.model.weight_cache import QuantizesWeight

_ROW_GROUP = 64


def sinusoids(length: int, channels: int) -> Tensor:
    """Return initial position embeddings, (length, channels), of variance 1 / channels.

    Neighbouring positions start with similar rows, unlike independent random ones: a
    character model of 64 positions got better than unigram frequencies by step 500 with
    these, and had not by step 900 with rows from N(0, 1 / channels).

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, scaled by sqrt(2 / channels).
    """
    position = torch.arange(length)[:, None]
    channel = torch.arange(channels)
    angle = position * torch.exp(-math.log(10_000.0) * (channel // 2 * 2) / channels)
    wave = torch.where(channel % 2 == 0, torch.sin(angle), torch.cos(angle))
    return wave * math.sqrt(2.0 / channels)


class Embedding(ScheduledModule):
    """The sum of token and learned position embeddings, quantized in groups of a row."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stage_bits = table_stage_bits(config.embedding_bits, config.weight_mode)
        self.bits = self.stage_bits.full_ternary
        self.group = largest_block(config.d_model, _ROW_GROUP)
        self.token = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.position = nn.Parameter(sinusoids(config.max_length, config.d_model))
        nn.init.normal_(self.token, std=config.d_model**-0.5)
        self.norm = make_norm(config, config.embed_norm)

    def apply_schedule(self, state: ScheduleState) -> None:
        """Set the bits of the next forwards."""
        self.bits = self.stage_bits.in_stage(state.stage)

    def forward(self, input_ids: Tensor, rows: Tensor | None) -> Tensor:
        """Embed tokens. Shapes: input_ids (B, S) int64 -> (B, S, d_model)."""
        # Each row has its own scales, so only the rows that were looked up are quantized.
        token = integer_weights(F.embedding(input_ids, self.token), self.bits, group=self.group)
        position = integer_weights(self.position[: input_ids.shape[1]], self.bits, group=self.group)
        out: Tensor = self.norm(token + position, rows)
        return out


class LanguageModelHead(ScheduledModule, QuantizesWeight):
    """The norm and the output matrix, which is not tied to the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stage_bits = table_stage_bits(config.head_bits, config.weight_mode)
        self.bits = self.stage_bits.full_ternary
        self.group = largest_block(config.d_model, _ROW_GROUP)
        self.norm = make_norm(config, config.final_norm)
        input_bits = table_stage_bits(config.head_bits, config.activation_mode)
        self.input = ActivationQuantizer(config, config.d_model, input_bits)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        nn.init.normal_(self.weight, std=config.d_model**-0.5)

    def apply_schedule(self, state: ScheduleState) -> None:
        """Set the bits of the weight; the quantizer of the input sets its own."""
        self.bits = self.stage_bits.in_stage(state.stage)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits. Shapes: hidden (M, d_model) -> (M, vocab_size)."""
        quantized = self.input(self.norm(hidden, None))
        return F.linear(quantized, self.weight_in_force(), self.bias)

    def quantized_weight(self) -> Tensor:
        """Return the weight at the bits in force, (vocab_size, d_model)."""
        return integer_weights(self.weight, self.bits, group=self.group)
