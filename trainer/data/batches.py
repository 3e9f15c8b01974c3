"""Rows of packed token ids, and masked batches of them.

In: token ids of paragraphs; a position in the endless order of rows.
Out: batches on the CPU; the batch at a position is the same in every process and every restart.
Never: uses the global random state, so that the noise of training does not depend on loading.

Letters: B rows in a batch, T tokens in a row, V tokens in the vocabulary.
"""

from __future__ import annotations

import multiprocessing.util
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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


def pack_rows(
    paragraphs: Iterable[NDArray[np.int32]], length: int, *, cls_id: int, sep_id: int, pad_id: int
) -> Tensor:
    """Pack paragraphs one after another into rows; only the end of the last row is padding.

    A row is [CLS] and length - 1 tokens of the stream of all paragraphs, each of which ends
    with a [SEP]. Shapes: -> (rows, length) int32.
    """
    separator = np.array([sep_id], dtype=np.int32)
    parts = [part for ids in paragraphs for part in (ids, separator)]
    stream = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
    count = -(-len(stream) // (length - 1))
    body = np.full(count * (length - 1), pad_id, dtype=np.int32)
    body[: len(stream)] = stream
    rows = np.full((count, length), cls_id, dtype=np.int32)
    rows[:, 1:] = body.reshape(count, length - 1)
    return torch.from_numpy(rows)


def mask_for_training(rows: Tensor, masking: Masking, generator: torch.Generator) -> Batch:
    """Choose tokens to predict: 80 % become [MASK], 10 % another token, 10 % stay.

    Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1. Departures: other tokens are
    drawn from the ordinary ones only, and at least one token of a batch is chosen, unless
    all are special.
    """
    rows = rows.long()
    chosen = _choose(rows, masking, generator)
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


def _choose(rows: Tensor, masking: Masking, generator: torch.Generator) -> Tensor:
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


class TrainingBatches(Dataset[Batch]):
    """The training batch at every position of an endless order of rows.

    Each epoch has a permutation of its own. A position counts rows from the start of
    training. Batches are always full: the one at the end of an epoch continues in the next,
    so no row is left out. world_size processes take neighbouring batches, in the order of
    their ranks. Each can count the tokens of the others without communication, since rows
    and masks follow from seed and position.
    """

    def __init__(
        self,
        rows: Tensor,
        batch_size: int,
        masking: Masking,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rows, self.batch_size, self.masking, self.seed = rows, batch_size, masking, seed
        self.rank, self.world_size = rank, world_size
        self._orders: dict[int, Tensor] = {}

    def __getitem__(self, position: int) -> Batch:
        own = position + self.rank * self.batch_size
        batch = mask_for_training(self._rows(own), self.masking, self._generator(own))
        span = self.batch_size * self.world_size
        others = [at for at in range(position, position + span, self.batch_size) if at != own]
        counts = [self._count(at) for at in others]
        return batch._replace(
            predicted_elsewhere=sum(predicted for predicted, _ in counts),
            tokens_elsewhere=sum(tokens for _, tokens in counts),
        )

    def _count(self, position: int) -> tuple[int, int]:
        """Count predicted tokens, and tokens that are not padding: 0.3 ms for 32 rows of 512."""
        rows = self._rows(position)
        chosen = _choose(rows, self.masking, self._generator(position))
        return int(chosen.sum()), int((rows != self.masking.pad_id).sum())

    def _rows(self, position: int) -> Tensor:
        places = range(position, position + self.batch_size)
        return self.rows[torch.tensor([self._row_at(place) for place in places])]

    def _generator(self, position: int) -> torch.Generator:
        return _generator(self.seed, 1, position)

    def _row_at(self, place: int) -> int:
        epoch, offset = divmod(place, len(self.rows))
        if epoch not in self._orders:
            order = torch.randperm(len(self.rows), generator=_generator(self.seed, 2, epoch))
            self._orders = {epoch - 1: self._orders.get(epoch - 1, order), epoch: order}
        return int(self._orders[epoch][offset])


def usable_workers(num_workers: int, say: Callable[[str], None]) -> int:
    """Return the number of loader processes to use; 0 if they could not pass on batches.

    They need a semaphore in /dev/shm and sockets in a directory for temporary files. The
    trainer would wait for ever for a loader that can't send its batch.
    """
    if num_workers == 0:
        return 0
    try:
        # Processes that are started later use the directory that is made here.
        multiprocessing.util.get_temp_dir()
        multiprocessing.Lock()
    except OSError as exc:
        say(f"Batches are prepared by the trainer itself: loader processes can't start ({exc}).")
        return 0
    return num_workers


def load_batches(
    source: TrainingBatches, position: int, num_workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Return an endless iterator of batches from a position on, equal for any num_workers."""
    loader = DataLoader(
        source,
        batch_size=None,
        sampler=range(position, 2**62, source.batch_size * source.world_size),
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_ignore_signals if num_workers else None,
        # Without a generator of its own, a loader draws from the global one when it starts,
        # and a resumed run would have other noise than the run that it continues.
        generator=torch.Generator(),
    )
    return iter(loader)


def _ignore_signals(worker: int) -> None:
    # Terminals and some batch systems signal the whole process group, and the trainer needs
    # its loader processes to finish the current step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def evaluation_batches(
    rows: Tensor,
    batch_size: int,
    masking: Masking,
    limit: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield the rows in order, with the same masks at every call; at most `limit` batches.

    A limit of 0 means all. A process takes every world_size-th batch, from that of its rank
    on. Batch size and number of processes change how rows are grouped, and nothing else.
    """
    starts = range(0, len(rows), batch_size)[: limit or None]
    for start in starts[rank::world_size]:
        yield mask_for_evaluation(rows[start : start + batch_size], masking, start)


def _generator(*entropy: int) -> torch.Generator:
    """Return a generator that is seeded by a tuple of numbers."""
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
