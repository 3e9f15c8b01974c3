"""The masked-language-model encoder: embedding, blocks and head.

In: token ids with a mask and labels; the step number, between steps.
Out: a loss and logits of the predicted positions, all on the device.
Never: waits for the device, if the caller passes the positions to predict.

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.activation import sample_rows
from trainer.model.block import Block
from trainer.model.config import NOT_PREDICTED, ModelConfig
from trainer.model.embedding import Embedding, LanguageModelHead
from trainer.model.linear import COLUMN_NAMES, QuantizedLinear
from trainer.model.precision import ScheduledModule
from trainer.model.schedule import ScheduleState, schedule_state


class MaskedLMOutput(NamedTuple):
    """Result of a forward at M predicted positions.

    Shapes: loss (), the mean cross entropy in nats; logits (M, V); correct (), the number of
    right predictions.
    """

    loss: Tensor
    logits: Tensor
    correct: Tensor | None  # counted in evaluation only, 0-d int64


class BitNetQDyT(nn.Module):
    """A bidirectional encoder with ternary weights and int4 activations.

    seed determines the fixed signs and permutations, which are saved as buffers; initial
    weights come from torch's global generator. Until apply_schedule is called, the
    bits are those of the last stage. Not thread-safe.
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator(device="cpu").manual_seed(seed)
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(
            Block(config, layer, generator) for layer in range(config.layers)
        )
        self.head = LanguageModelHead(config)

    def apply_schedule(self, step: int, total_steps: int) -> ScheduleState:
        """Set bits, QDrop, alpha ramp, dither and dropout for one optimizer step.

        Call it before each step and before an evaluation. The first call in which a
        layer is ternary starts its scale, threshold and dead zone from its weights.

        Raises:
            ValueError: step below 0 or total_steps below 1.
        """
        state = schedule_state(self.config, step, total_steps)
        for module in self.modules():
            if isinstance(module, ScheduledModule):
                module.apply_schedule(state)
        return state

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        predicted: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Return loss and logits of the positions whose label is not -100.

        Shapes: input_ids (B, S) int64, attention_mask (B, S) bool or None where nothing is
        padding, labels (B, S) int64, predicted (M,) int64: the flat indices of those
        positions, if the caller knows them. Without them the host waits for the device,
        since the number of these positions is the shape of a tensor.

        A batch with nothing to predict has a loss of 0 and gradients of 0.

        Raises:
            ValueError: the rows are longer than max_length.
        """
        if input_ids.shape[1] > self.config.max_length:
            raise ValueError(
                f"rows of {input_ids.shape[1]} tokens are longer than max_length "
                f"{self.config.max_length}"
            )
        if predicted is None:
            predicted = (labels.flatten() != NOT_PREDICTED).nonzero().squeeze(1)
        hidden = self._hidden(input_ids, attention_mask)
        logits = self.head(hidden.flatten(0, 1).index_select(0, predicted))
        targets = labels.flatten().index_select(0, predicted)
        # The sum over no positions is 0 where their mean would be NaN.
        loss = F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(targets), 1)
        correct = None if self.training else (logits.argmax(dim=-1) == targets).sum()
        return MaskedLMOutput(loss, logits, correct)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the parameter groups for AdamW; only matrices and tables have weight decay.

        Each group has a name and an lr_scale, by which the training loop multiplies the
        learning rate; that of the quantizers' columns is quantizer_lr_scale.
        """
        matrices: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        columns: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[2] in COLUMN_NAMES:
                columns.append(parameter)
            else:
                (matrices if parameter.dim() > 1 else vectors).append(parameter)
        quiet = {"weight_decay": 0.0}
        scale = self.config.quantizer_lr_scale
        groups: list[dict[str, Any]] = [
            {"name": "matrices", "params": matrices, "weight_decay": weight_decay, "lr_scale": 1.0},
            {"name": "vectors", "params": vectors, "lr_scale": 1.0, **quiet},
            {"name": "quantizers", "params": columns, "lr_scale": scale, **quiet},
        ]
        return [group for group in groups if group["params"]]

    def set_loss_scale(self, scale: float | Tensor) -> None:
        """Set the factor by which the loss is multiplied before backward; 1 at first.

        The gradients of s, t and delta are clipped inside of backward, so the limit has to
        grow with the loss. A 0-d tensor stays on its device.
        """
        for module in self.modules():
            if isinstance(module, QuantizedLinear):
                module.grad_clip = self.config.lsq_grad_clip * scale

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the input of the head. Shapes: input_ids (B, S) -> (B, S, d_model)."""
        rows = None
        if self.training:
            # All quantizers share one sample of rows; each would otherwise draw its own.
            valid = torch.ones_like(input_ids, dtype=torch.bool)
            rows = sample_rows((valid if attention_mask is None else attention_mask).flatten())
        key_mask = None if attention_mask is None else _key_mask(attention_mask)
        x: Tensor = self.embedding(input_ids, rows)
        for block in self.blocks:
            x = block(x, key_mask, rows)
        return x


def _key_mask(attention_mask: Tensor) -> Tensor:
    """Return the mask of keys. Shapes: attention_mask (B, S) bool -> (B, 1, 1, S).

    A row that is all padding attends to every key: a softmax over no keys would be NaN, and
    the NaN would reach every parameter.
    """
    usable = attention_mask | ~attention_mask.any(dim=1, keepdim=True)
    return usable[:, None, None, :]
