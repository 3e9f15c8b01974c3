"""Packing, masking and the order of rows."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.batches import TrainingBatches, evaluation_batches, load_batches, usable_workers
from trainer.data.masking import Masking, mask_for_evaluation, mask_for_training
from trainer.data.token_cache import pack_rows
from trainer.model.config import NOT_PREDICTED

PAD, _, CLS, SEP, MASK = range(5)
VOCABULARY = 1000
TOKENS = st.integers(min_value=5, max_value=VOCABULARY - 1)


def masking(probability: float = 0.15) -> Masking:
    return Masking.of(VOCABULARY, range(5), MASK, PAD, probability)


def random_rows(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCABULARY, (rows, length), generator=generator).int()


@given(st.lists(st.lists(TOKENS, max_size=30), max_size=20), st.integers(2, 17))
def test_packing_loses_no_token_and_pads_only_the_end(paragraphs, length):
    """The rows without their [CLS], read on, are the paragraphs with a [SEP] behind each."""
    arrays = [np.array(ids, dtype=np.int32) for ids in paragraphs]

    rows = pack_rows(arrays, length, cls_id=CLS, sep_id=SEP, pad_id=PAD)

    expected = [token for ids in paragraphs for token in [*ids, SEP]]
    read = rows[:, 1:].flatten().tolist()
    assert rows.shape[1] == length
    assert (rows[:, 0] == CLS).all()
    assert read[: len(expected)] == expected
    assert set(read[len(expected) :]) <= {PAD}
    assert len(read) - len(expected) < length - 1


@given(st.integers(0, 2**31), st.sampled_from([0.01, 0.15, 0.5, 1.0]))
@settings(max_examples=30)
def test_masking_changes_only_what_it_asks_for(seed, probability):
    """Labels are the original tokens where something is predicted, and nothing elsewhere."""
    rows = random_rows(4, 16)
    rows[:, 0], rows[-1, 10:] = CLS, PAD

    batch = mask_for_training(rows, masking(probability), torch.Generator().manual_seed(seed))

    chosen = batch.labels != NOT_PREDICTED
    assert len(batch.predicted) >= 1
    assert torch.equal(batch.predicted, chosen.flatten().nonzero().squeeze(1))
    assert torch.equal(batch.labels[chosen], rows.long()[chosen])
    assert torch.equal(batch.input_ids[~chosen], rows.long()[~chosen])
    assert not chosen[rows < 5].any()
    assert torch.equal(batch.attention_mask, rows != PAD)
    assert batch.tokens == int((rows != PAD).sum())


def test_eighty_percent_are_masked_ten_replaced_and_ten_kept():
    """The shares of the masks, on enough tokens to see them."""
    rows = random_rows(256, 128)

    batch = mask_for_training(rows, masking(), torch.Generator().manual_seed(1))

    chosen = batch.labels != NOT_PREDICTED
    shown, original = batch.input_ids[chosen], batch.labels[chosen]
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (shown == MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (shown == original).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert not (shown[shown != MASK] < 5).any()


def test_evaluation_predicts_masked_positions_only():
    """A token that stays visible could be copied, and would look like learning."""
    batch = mask_for_evaluation(random_rows(8, 32), masking())

    assert (batch.input_ids[batch.labels != NOT_PREDICTED] == MASK).all()


def test_every_evaluation_has_the_same_masks():
    """Losses of different steps are comparable."""
    rows = random_rows(10, 16)

    first = list(evaluation_batches(rows, 4, masking()))
    second = list(evaluation_batches(rows, 4, masking()))

    assert [len(batch.input_ids) for batch in first] == [4, 4, 2]
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(first, second, strict=True))
    assert len(list(evaluation_batches(rows, 4, masking(), limit=2))) == 2


@pytest.mark.parametrize("batch_size", [1, 3, 8, 16, 32])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_rows_masks_do_not_depend_on_its_batch(batch_size, world_size):
    """Any size of batches and any number of processes: row by row the same [MASK] positions."""
    rows = random_rows(50, 16)
    whole = mask_for_evaluation(rows, masking())

    found = [
        list(evaluation_batches(rows, batch_size, masking(), 0, rank, world_size))
        for rank in range(world_size)
    ]

    count = -(-50 // batch_size)
    together = [found[number % world_size][number // world_size] for number in range(count)]
    assert torch.equal(torch.cat([batch.input_ids for batch in together]), whole.input_ids)
    assert torch.equal(torch.cat([batch.labels for batch in together]), whole.labels)


def test_masks_of_an_evaluation_are_chosen_evenly():
    """By rows and by columns, at the probability that was asked for; no two rows are alike."""
    batch = mask_for_evaluation(random_rows(2000, 64), masking())

    chosen = (batch.labels != NOT_PREDICTED).float()
    assert chosen.mean().item() == pytest.approx(0.15, abs=0.005)
    assert (chosen.mean(0) - 0.15).abs().max() < 0.04
    assert len(chosen.unique(dim=0)) == 2000


def test_a_batch_of_an_evaluation_may_have_nothing_to_predict():
    """A token chosen for the batch's sake would be another one at another batch size."""
    rows = torch.full((3, 8), SEP)

    batch = mask_for_evaluation(rows, masking(1.0))

    assert len(batch.predicted) == 0


def test_only_a_batch_with_padding_has_a_mask_for_the_encoder():
    """Fused attention takes none; the last batch of an epoch may need one."""
    rows = random_rows(2, 8)
    full = mask_for_evaluation(rows, masking())
    rows[1, 5:] = PAD

    padded = mask_for_evaluation(rows, masking())

    assert full.inputs[1] is None
    assert torch.equal(padded.inputs[1], rows != PAD)
    assert padded.inputs[0] is padded.input_ids and padded.inputs[3] is padded.predicted


def unmasked(batch) -> torch.Tensor:
    return torch.where(batch.labels != NOT_PREDICTED, batch.labels, batch.input_ids)


@given(st.integers(1, 9), st.integers(1, 7))
@settings(max_examples=25)
def test_an_epoch_shows_every_row_once_in_its_own_order(count, batch_size):
    """Also where batches run across the end of an epoch."""
    rows = torch.arange(5, 5 + count).int().unsqueeze(1).expand(count, 4)
    source = TrainingBatches(rows, batch_size, masking(), seed=1)

    positions = range(0, count * batch_size, batch_size)
    seen = torch.cat([unmasked(source[position])[:, 0] for position in positions])

    epochs = seen.view(batch_size, count)
    assert all(sorted(epoch.tolist()) == list(range(5, 5 + count)) for epoch in epochs)


def test_batches_are_the_same_whoever_prepares_them():
    """A position decides a batch, not the number of workers nor where a run began."""
    source = TrainingBatches(random_rows(10, 8), 4, masking(), seed=1)
    state = torch.get_rng_state()

    alone = load_batches(source, 0, num_workers=0, pin_memory=False)
    helped = load_batches(source, 8, num_workers=2, pin_memory=False)
    [_, _, *expected] = [next(alone) for _ in range(5)]
    found = [next(helped) for _ in range(3)]

    assert all(
        torch.equal(a, b)
        for ours, theirs in zip(found, expected, strict=True)
        for a, b in zip(ours[:4], theirs[:4], strict=True)
    )
    assert torch.equal(torch.get_rng_state(), state), "loading drew from the global generator"


@pytest.mark.parametrize("what", ["multiprocessing.util.get_temp_dir", "multiprocessing.Lock"])
def test_loader_processes_that_can_not_share_are_not_started(monkeypatch, what):
    """Without /dev/shm or a temporary directory they would leave the trainer waiting."""

    def fails() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    said: list[str] = []
    monkeypatch.setattr(what, fails)

    assert usable_workers(4, said.append) == 0
    assert usable_workers(0, said.append) == 0
    assert len(said) == 1 and "Read-only" in said[0]


def test_loader_processes_that_can_share_are_as_many_as_asked_for():
    """And nothing is said."""
    said: list[str] = []

    assert usable_workers(3, said.append) == 3 and said == []
