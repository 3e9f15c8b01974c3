"""One encoder block: attention and a gated feed-forward, each on a scaled residual.

In: the residual stream (B, S, d_model), a mask of the keys that may be attended to (None
for all of them), and the rows that quantizers may sample.
Out: the residual stream.
Never: masks a query; the result at a padded position is not used.

    x = x + zeta_1 * Attention(QDyT(x));   x = x + zeta_2 * SwiGLU(QDyT(x))

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention"; SwiGLU from Shazeer 2020, arXiv:2002.05202;
zeta after SkipInit, De and Smith 2020, arXiv:2002.10444.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.activation import ActivationQuantizer
from trainer.model.config import ModelConfig
from trainer.model.linear import QuantizedLinear
from trainer.model.mixing import make_mixer
from trainer.model.norms import make_norm
from trainer.model.precision import activation_stage_bits, weight_stage_bits
from trainer.model.readings import ObservedModule, attention_readings


class Attention(ObservedModule):
    """Bidirectional self-attention.

    The input of Q and K has more bits than that of V, and one range for each head.
    """

    def __init__(self, config: ModelConfig, layer: int, generator: torch.Generator) -> None:
        super().__init__()
        d = config.d_model
        self.heads = config.heads
        self.mixer = make_mixer(config, d, config.d_head, hadamard=True, generator=generator)
        self.qk_input = ActivationQuantizer(
            config, d, activation_stage_bits(config, layer, "q"), channels_per_range=config.d_head
        )
        self.v_input = ActivationQuantizer(config, d, activation_stage_bits(config, layer, "v"))
        self.o_input = ActivationQuantizer(config, d, activation_stage_bits(config, layer, "o"))
        self.q = QuantizedLinear(config, d, d, weight_stage_bits(config, layer, "q"))
        self.k = QuantizedLinear(config, d, d, weight_stage_bits(config, layer, "k"))
        self.v = QuantizedLinear(config, d, d, weight_stage_bits(config, layer, "v"))
        self.o = QuantizedLinear(config, d, d, weight_stage_bits(config, layer, "o"))

    def forward(self, x: Tensor, key_mask: Tensor | None, rows: Tensor | None) -> Tensor:
        """Shapes: x (B, S, d), key_mask (B, 1, 1, S) bool -> (B, S, d)."""
        mixed = self.mixer(x)
        qk = self.qk_input(mixed, rows)
        q, k, v = (
            torch.unflatten(part, -1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q(qk), self.k(qk), self.v(self.v_input(mixed, rows)))
        )
        if self.observing and self.training:
            self.readings = attention_readings(q.detach(), k.detach(), key_mask)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        joined = attended.transpose(1, 2).flatten(-2)
        out: Tensor = self.o(self.o_input(joined, rows))
        return out


class FeedForward(nn.Module):
    """SwiGLU feed-forward: down(silu(gate(x)) * up(x)). The gate's input has more bits."""

    def __init__(self, config: ModelConfig, layer: int, generator: torch.Generator) -> None:
        super().__init__()
        d, wide = config.d_model, config.d_ffn
        hadamard = layer % 2 == 0
        self.mixer = make_mixer(config, d, d, hadamard, generator)
        self.down_mixer = make_mixer(config, wide, wide, hadamard, generator)
        self.up_input = ActivationQuantizer(config, d, activation_stage_bits(config, layer, "up"))
        self.gate_input = ActivationQuantizer(
            config, d, activation_stage_bits(config, layer, "gate")
        )
        self.down_input = ActivationQuantizer(
            config, wide, activation_stage_bits(config, layer, "down")
        )
        self.up = QuantizedLinear(config, d, wide, weight_stage_bits(config, layer, "up"))
        self.gate = QuantizedLinear(config, d, wide, weight_stage_bits(config, layer, "gate"))
        self.down = QuantizedLinear(config, wide, d, weight_stage_bits(config, layer, "down"))

    def forward(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Apply the layer. Shapes: x (B, S, d) -> (B, S, d)."""
        mixed = self.mixer(x)
        gate = F.silu(self.gate(self.gate_input(mixed, rows)))
        wide = gate * self.up(self.up_input(mixed, rows))
        out: Tensor = self.down(self.down_input(self.down_mixer(wide), rows))
        return out


class Block(nn.Module):
    """A pre-norm block (by default with QDyT) with a learned scale on each residual branch."""

    def __init__(self, config: ModelConfig, layer: int, generator: torch.Generator) -> None:
        super().__init__()
        zeta = config.skip_init_scale / config.layers**0.5
        self.attention_norm = make_norm(config, config.block_norm)
        self.attention = Attention(config, layer, generator)
        self.attention_zeta = nn.Parameter(torch.tensor(zeta))
        self.ffn_norm = make_norm(config, config.block_norm)
        self.ffn = FeedForward(config, layer, generator)
        self.ffn_zeta = nn.Parameter(torch.tensor(zeta))

    def forward(self, x: Tensor, key_mask: Tensor | None, rows: Tensor | None) -> Tensor:
        """Shapes: x (B, S, d), key_mask (B, 1, 1, S) bool -> (B, S, d)."""
        attended = self.attention(self.attention_norm(x, rows), key_mask, rows)
        x = x + self.attention_zeta * attended
        out: Tensor = x + self.ffn_zeta * self.ffn(self.ffn_norm(x, rows), rows)
        return out

    def zetas(self) -> tuple[Tensor, Tensor]:
        """Return the learned scales of attention and feed-forward, () each."""
        return self.attention_zeta, self.ffn_zeta
