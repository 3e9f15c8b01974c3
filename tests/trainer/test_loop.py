"""The steps of the loop that can be checked without a whole run."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trainer.data.masking import Masking, mask_for_evaluation, mask_for_training
from trainer.training.evaluate import evaluate
from trainer.training.processes import Place, Processes
from trainer.training.scalar_copies import ScalarCopies
from trainer.training.step import Stepper

CPU = torch.device("cpu")
VOCABULARY = 50


class PlainModel(nn.Module):
    """The least that predicts tokens: an embedding and a head, with a little dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.dropout = dropout
        self.head = nn.Linear(8, VOCABULARY)

    def set_loss_scale(self, scale):
        pass

    def forward(self, input_ids, attention_mask, labels, predicted):
        # With training=True: noise in evaluation too, as a model may have it.
        hidden = nn.functional.dropout(self.embedding(input_ids), self.dropout, training=True)
        logits = self.head(hidden.flatten(0, 1)[predicted])
        targets = labels.flatten()[predicted]
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
        return SimpleNamespace(
            loss=loss / max(1, len(targets)), correct=(logits.argmax(-1) == targets).sum()
        )


def batch_of(rows: torch.Tensor, seed: int = 0):
    masking = Masking.of(VOCABULARY, range(5), 4, 0, 0.3)
    return mask_for_training(rows, masking, torch.Generator().manual_seed(seed))


def gradients(micro_batches) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = PlainModel()
    loss = Stepper(model, CPU, None, Processes(Place())).accumulate_gradients(micro_batches)
    return loss.item(), [parameter.grad for parameter in model.parameters()]


def test_accumulation_equals_the_larger_batch():
    """Micro batches count by their predicted tokens, so nothing but rounding differs."""
    whole = batch_of(torch.randint(5, VOCABULARY, (6, 12)))
    parts = []
    for rows in (slice(0, 1), slice(1, 3), slice(3, 6)):
        labels = whole.labels[rows]
        predicted = (labels.flatten() != -100).nonzero().squeeze(1)
        parts.append(
            whole._replace(
                input_ids=whole.input_ids[rows],
                attention_mask=whole.attention_mask[rows],
                labels=labels,
                predicted=predicted,
            )
        )
    assert len({len(part.predicted) for part in parts}) > 1, "the parts should weigh differently"

    loss, one_pass = gradients([whole])
    accumulated_loss, accumulated = gradients(parts)

    assert abs(loss - accumulated_loss) < 1e-6
    for ours, theirs in zip(accumulated, one_pass, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_evaluation_is_the_mean_over_tokens_and_leaves_the_noise_alone():
    """Neither the split into batches nor an evaluation in between changes a run."""
    model = PlainModel(dropout=0.0)
    batches = [batch_of(torch.randint(5, VOCABULARY, (n, 12))) for n in (1, 4)]
    noisy = PlainModel(dropout=0.5)
    state = torch.get_rng_state()

    found = evaluate(model, batches, CPU)
    evaluate(noisy, batches, CPU)

    losses = [model(*batch[:4]).loss.item() for batch in batches]
    weights = [len(batch.predicted) for batch in batches]
    expected = sum(a * b for a, b in zip(losses, weights, strict=True)) / sum(weights)
    right = sum(model(*batch[:4]).correct.item() for batch in batches)
    assert abs(found.loss.item() - expected) < 1e-5
    assert found.accuracy.item() == pytest.approx(right / sum(weights))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_an_evaluation_of_nothing_has_no_result():
    """No predicted token, no mean; some rows without one are no trouble."""
    empty = mask_for_evaluation(torch.full((2, 8), 3), Masking.of(VOCABULARY, range(5), 4, 0, 0.3))
    some = batch_of(torch.randint(5, VOCABULARY, (2, 12)))

    assert evaluate(PlainModel(), [empty], CPU) is None
    alone, beside = evaluate(PlainModel(), [some], CPU), evaluate(PlainModel(), [empty, some], CPU)

    assert alone is not None and beside is not None
    assert beside.loss.isfinite()


def test_an_evaluation_is_in_float32_whatever_surrounds_it():
    """TF32 and autocast are of training; the setting comes back."""
    seen = []

    class Watching(PlainModel):
        def forward(self, *batch):
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            return super().forward(*batch)

    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        evaluate(Watching(), [batch_of(torch.randint(5, VOCABULARY, (2, 12)))], CPU)
        after = torch.backends.cuda.matmul.fp32_precision
    finally:
        torch.backends.cuda.matmul.fp32_precision = before

    assert (seen, after) == (["ieee"], "tf32")


def test_a_step_with_nothing_to_predict_is_a_step_without_gradient():
    """Rows of special tokens alone, in one micro batch or in all: no division by 0."""
    nothing = batch_of(torch.full((2, 12), 3))
    something = batch_of(torch.randint(5, VOCABULARY, (2, 12)))

    loss, zero = gradients([nothing])
    alone, expected = gradients([something])
    beside, found = gradients([nothing, something])

    assert loss == 0.0
    assert all(gradient is None or not gradient.any() for gradient in zero)
    assert beside == pytest.approx(alone)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_empty_step_is_left_out_with_a_loss_scale_too():
    """The scaler has seen no infinity, and the scale stays."""
    torch.manual_seed(0)
    model = PlainModel()
    stepper = Stepper(model, CPU, torch.float16, Processes(Place()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    something = batch_of(torch.randint(5, VOCABULARY, (2, 12)))
    moved = []

    for batch in (something, batch_of(torch.full((2, 12), 3))):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        stepper.autocast = nullcontext  # half precision itself is slow on a CPU
        stepper.accumulate_gradients([batch])
        stepper.scaler.unscale_(optimizer)
        stepper.update(optimizer)
        pairs = zip(before, model.parameters(), strict=True)
        moved.append(any(not torch.equal(old, new) for old, new in pairs))

    assert moved == [True, False]
    assert stepper.scaler.get_scale() == 2.0**16


def test_an_interrupted_evaluation_has_no_result():
    """Half a mean would be a point on a chart that means something else."""
    stopping = iter([False, True, True])
    batches = [batch_of(torch.randint(5, VOCABULARY, (2, 12))) for _ in range(3)]

    result = evaluate(PlainModel(), batches, CPU, lambda: next(stopping))

    assert result is None


def test_scalars_arrive_in_order_with_the_values_of_their_moment():
    """What happens to a tensor after it was sent does not change what arrives."""
    copies: ScalarCopies[str] = ScalarCopies(CPU)
    total = torch.tensor(1.0)

    copies.send("first", {"a": total, "b": torch.tensor(3, dtype=torch.int64)})
    total += 1
    copies.send("nothing", {})
    copies.send("second", {"a": total})

    assert copies.arrived() == [("first", {"a": 1.0, "b": 3.0}), ("second", {"a": 2.0})]
    assert copies.arrived() == []


def test_a_copy_that_is_not_done_holds_back_those_behind_it():
    """Polling asks and goes on; only wait() waits."""
    copies: ScalarCopies[str] = ScalarCopies(CPU)
    copies.send("first", {"a": torch.tensor(1.0)})
    copies.send("second", {"a": torch.tensor(2.0)})
    event = SimpleNamespace(is_done=False)
    event.query = lambda: event.is_done
    event.synchronize = lambda: setattr(event, "is_done", True)
    object.__setattr__(copies._sent[0], "copied", event)

    early = copies.arrived()
    waited = copies.wait()

    assert early == []
    assert [label for label, _ in waited] == ["first", "second"]
