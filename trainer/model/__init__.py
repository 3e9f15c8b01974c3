"""BitNet-QDyT-v2: a masked-LM encoder with ternary weights and int4 activations."""

from trainer.model.config import MODEL_SIZES, ModelConfig
from trainer.model.encoder import BitNetQDyT, MaskedLMOutput

__all__ = ["MODEL_SIZES", "BitNetQDyT", "MaskedLMOutput", "ModelConfig"]
