"""Masked batches: the choice of the tokens to predict, and their place in a batch.

In: rows of token ids, (B, T).
Out: batches on the CPU.
Never: uses the global random state, so that the noise of training does not depend on loading.

Letters: B rows in a batch, T tokens in a row, V tokens in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.tokenizer import LoadedTokenizer
from trainer.model.config import NOT_PREDICTED

EVALUATION_SEED = 20_240_607
"""The seed of the masks of all evaluations. It does not depend on the run's seed, so that losses
of several runs can be compared."""


class Batch(NamedTuple):
    """Masked rows, and counts that the host has without asking a device.

    Shapes: input_ids, labels (B, T) int64; attention_mask (B, T) bool; predicted (M,) int64,
    the flat indices of the tokens to predict, with M = 0 possible. tokens counts tokens that
    are not padding. The fields with _elsewhere are the numbers of predicted and of other
    tokens in the batches that other processes have at the same time.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    predicted: Tensor
    tokens: int
    predicted_elsewhere: int = 0
    tokens_elsewhere: int = 0

    @property
    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The arguments of an encoder's forward; the mask is None if no token is padding.

        Fused attention kernels do not take a boolean mask, and most batches need none.
        """
        is_full = self.tokens == self.input_ids.numel()
        mask = None if is_full else self.attention_mask
        return self.input_ids, mask, self.labels, self.predicted

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; the copy is asynchronous from pinned memory."""
        return self._replace(
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            predicted=self.predicted.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Masking:
    """Settings of masking: the share of tokens to predict, and the ids it needs.

    Shapes: special_ids (few,), ordinary_ids (V - few,), both int64. Special tokens are never
    predicted.
    """

    probability: float
    mask_id: int
    pad_id: int
    special_ids: Tensor
    ordinary_ids: Tensor

    @classmethod
    def of(
        cls, vocabulary_size: int, special_ids: Sequence[int], mask_id: int, pad_id: int, p: float
    ) -> Masking:
        """Build the settings from a tokenizer's ids and the probability p."""
        special = torch.tensor(sorted(special_ids))
        every = torch.arange(vocabulary_size)
        return cls(p, mask_id, pad_id, special, every[~torch.isin(every, special)])

    @classmethod
    def with_tokenizer(cls, tokenizer: LoadedTokenizer, probability: float) -> Masking:
        """Build the settings of a run from its tokenizer."""
        return cls.of(
            tokenizer.vocabulary_size,
            tokenizer.special_ids,
            tokenizer.mask_id,
            tokenizer.pad_id,
            probability,
        )


def mask_for_training(rows: Tensor, masking: Masking, generator: torch.Generator) -> Batch:
    """Choose tokens to predict: 80 % become [MASK], 10 % another token, 10 % stay.

    Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1. Departures: other tokens are
    drawn from the ordinary ones only, and at least one token of a batch is chosen, unless
    all are special.
    """
    rows = rows.long()
    chosen = choose_tokens(rows, masking, generator)
    kind = torch.rand(rows.shape, generator=generator)
    drawn = torch.randint(len(masking.ordinary_ids), rows.shape, generator=generator)
    inputs = torch.where(chosen & (kind < 0.8), masking.mask_id, rows)
    inputs = torch.where(chosen & (kind >= 0.9), masking.ordinary_ids[drawn], inputs)
    return _batch(rows, inputs, chosen, masking.pad_id)


def mask_for_evaluation(rows: Tensor, masking: Masking, first_row: int = 0) -> Batch:
    """Choose tokens to predict; every one becomes [MASK], since a visible one could be copied.

    first_row is the number of the first row in its split. The choice at a position follows
    from the number of its row, its column, and EVALUATION_SEED, so batches of any size and in
    any process have the same masks. A batch can therefore have no token to predict.
    """
    rows = rows.long()
    chosen = ~torch.isin(rows, masking.special_ids)
    chosen &= fixed_uniform(first_row, *rows.shape) < masking.probability
    return _batch(rows, torch.where(chosen, masking.mask_id, rows), chosen, masking.pad_id)


def fixed_uniform(first_row: int, rows: int, columns: int) -> Tensor:
    """Return numbers in [0, 1) that depend on EVALUATION_SEED, row and column alone.

    Shapes: -> (rows, columns) float64. This is a hash. The numbers of a generator would
    depend on how many were drawn before, and on torch's version.

    Source: splitmix64, Steele et al. 2014, doi:10.1145/2660193.2660195.
    """
    row = np.arange(first_row, first_row + rows, dtype=np.uint64)[:, None]
    column = np.arange(columns, dtype=np.uint64)
    keyed = _splitmix64(row + np.uint64(EVALUATION_SEED << 32))
    bits = _splitmix64(keyed + column)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the output of splitmix64 for each state; sums and products wrap around."""
    z = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def choose_tokens(rows: Tensor, masking: Masking, generator: torch.Generator) -> Tensor:
    """Return which tokens of a training batch are to be predicted, as bool of the rows' shape."""
    eligible = ~torch.isin(rows, masking.special_ids)
    chosen = eligible & (torch.rand(rows.shape, generator=generator) < masking.probability)
    if not chosen.any():
        chosen.view(-1)[eligible.view(-1).nonzero()[:1]] = True
    return chosen


def _batch(rows: Tensor, inputs: Tensor, chosen: Tensor, pad_id: int) -> Batch:
    visible = rows != pad_id
    labels = torch.where(chosen, rows, NOT_PREDICTED)
    predicted = chosen.flatten().nonzero().squeeze(1)
    return Batch(inputs, visible, labels, predicted, int(visible.sum()))
