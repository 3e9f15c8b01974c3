"""LayerNorm and QDyT behind one call, module(x, rows), from (..., d_model) to the same."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.model.config import ModelConfig, NormKind
from trainer.model.qdyt import QDyT


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm with the arguments of QDyT; it ignores the sampled rows."""

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Normalize x. Shapes: x (..., d_model) -> the same."""
        return super().forward(x)


def make_norm(config: ModelConfig, kind: NormKind) -> nn.Module:
    """Build the LayerNorm or QDyT that kind names, over d_model channels."""
    return QDyT(config) if kind == "qdyt" else LayerNorm(config.d_model)
