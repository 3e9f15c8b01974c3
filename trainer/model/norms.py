"""The norms that a configuration may name, called alike.

In: the kind of norm a site has.
Out: a module from (..., d_model) to (..., d_model).
Never: decides which site has which; the configuration does.
"""

from __future__ import annotations

from torch import Tensor, nn

from trainer.model.config import ModelConfig, NormKind
from trainer.model.qdyt import QDyT


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm, which takes the sampled rows as QDyT does, and ignores them."""

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(..., d_model) -> (..., d_model)."""
        return super().forward(x)


def make_norm(config: ModelConfig, kind: NormKind) -> nn.Module:
    """LayerNorm or QDyT over d_model channels."""
    return QDyT(config) if kind == "qdyt" else LayerNorm(config.d_model)
