"""A teacher beside a run: what it changes, what it leaves alone, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shared.events import MetricsLogged
from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.__main__ import main
from trainer.model.teacher import Teacher, divergence
from trainer.training.checkpoint import CheckpointDirectory, read_checkpoint
from trainer.training.distillation import TeacherDistillation
from trainer.training.processes import Place, Processes

ALONE = Processes(Place())
DENSE = ["weight_mode=float", "activation_mode=float", "mixers=none", "block_norm=layernorm"]


def make_teacher() -> Teacher:
    """It knows nothing, but is sure of it."""
    encoder = make_model()
    with torch.no_grad():
        encoder.head.weight *= 3.0
    return Teacher(encoder)


def distilled(weight: float):
    model = make_model()
    distillation = TeacherDistillation(model, make_teacher(), temperature=2.0, final_weight=weight)
    distillation.begin_step(9, 10)
    return model, distillation


def test_the_gradient_has_the_teachers_share_and_the_value_is_the_cross_entropy():
    """As if the loss were cross entropy + weight * divergence, which is not what is reported."""
    plain, (model, distillation) = make_model(), distilled(weight=0.4)
    batch = make_batch()

    torch.manual_seed(1)
    expected = plain(*batch)
    apart = divergence(expected.logits, make_teacher().logits(*batch), 2.0)
    (expected.loss + 0.4 * apart).backward()
    torch.manual_seed(1)
    found = model(*batch)
    found.loss.backward()

    assert found.loss == expected.loss
    numbers = distillation.numbers(ALONE)
    torch.testing.assert_close(numbers["train/teacher_loss"], apart.detach())
    assert numbers["train/teacher_weight"].item() == pytest.approx(0.4)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_micro_batches_count_by_their_predicted_tokens():
    """The reported divergence is that of the batch with all their rows."""
    model, distillation = distilled(weight=0.4)
    ids, mask, labels = make_batch(rows=3)
    model.apply_schedule(99, 100)
    model.requires_grad_(False)
    for quantizer in model.modules():
        quantizer.training = False  # nearest rounding, so that the parts are those of the whole
    model.training = True

    model(ids, mask, labels)
    whole = distillation.numbers(ALONE)["train/teacher_loss"]
    distillation.begin_step(9, 10)
    for rows in (slice(0, 1), slice(1, 3)):
        model(ids[rows], mask[rows], labels[rows])

    torch.testing.assert_close(distillation.numbers(ALONE)["train/teacher_loss"], whole)


def test_an_evaluation_knows_nothing_of_the_teacher():
    """Same loss as without, and nothing counted."""
    model, distillation = distilled(weight=0.4)
    batch = make_batch()

    loss = model.eval()(*batch).loss

    assert loss == make_model().eval()(*batch).loss
    assert distillation.numbers(ALONE)["train/teacher_loss"].isnan()


def out(small_run: list[str]) -> Path:
    return Path(small_run[small_run.index("--output_dir") + 1])


def test_a_run_learns_from_its_own_average(small_run, recorder):
    """The weight rises from 0 to what was asked for; the average is in the checkpoint."""
    run = [*small_run, "--max_steps", "6", "--gradient_accumulation_steps", "2"]

    code = main([*run, "--teacher", "ema", "--teacher_weight", "0.3"])

    checkpoint = read_checkpoint(CheckpointDirectory(out(small_run)).resolve("latest"))
    weights = list(recorder.metrics("train", "train/teacher_weight").values())
    apart = list(recorder.metrics("train", "train/teacher_loss").values())
    assert code == 0
    assert weights == sorted(weights)
    assert (weights[0], weights[-1]) == (0.0, pytest.approx(0.3))
    assert all(value > 0 for value in apart)
    assert {name.removeprefix("encoder.") for name in checkpoint["teacher"]} == set(
        checkpoint["model"]
    )


def test_a_run_learns_from_a_dense_checkpoint(small_run, recorder, tmp_path):
    """Which no checkpoint of the run has to keep; without a teacher there are no such metrics."""
    dense = tmp_path / "dense"
    main([*small_run, "--output_dir", str(dense), "--model_option", *DENSE])
    without_teacher = [e for e in recorder.of(MetricsLogged) if e.kind == "train"]
    recorder.events.clear()
    teacher = CheckpointDirectory(dense).resolve("latest")

    code = main([*small_run, "--teacher", str(teacher), "--teacher_temperature", "1.5"])

    assert code == 0
    assert not any("train/teacher_loss" in event.values for event in without_teacher)
    assert all(value > 0 for value in recorder.metrics("train", "train/teacher_loss").values())
    kept = CheckpointDirectory(out(small_run)).resolve("latest")
    assert not (kept / "teacher.safetensors").exists()


def test_an_average_that_is_not_in_the_checkpoint_begins_anew(small_run, recorder, capsys):
    """It is said, for the run is not quite the one that it goes on from."""
    main([*small_run, "--save_interval", "2"])
    checkpoint = out(small_run) / "checkpoints" / "step-000002"
    capsys.readouterr()

    code = main([*small_run, "--resume_from", str(checkpoint), "--teacher", "ema"])

    assert code == 0
    assert "no averaged teacher: it begins as the model is now" in capsys.readouterr().err


def test_a_teacher_that_does_not_fit_is_refused(small_run, recorder, tmp_path, capsys):
    """Other words, or rows that are too long for it: one sentence, before anything is recorded."""
    short = tmp_path / "short"
    main([*small_run, "--output_dir", str(short), "--model_option", "max_length=16", "layers=1"])
    recorder.events.clear()
    teacher = CheckpointDirectory(short).resolve("latest")
    state = teacher / "state.json"

    long = main([*small_run, "--teacher", str(teacher), "--max_length", "32"])
    state.write_text(state.read_text().replace("shipped ", "other "))
    other = main([*small_run, "--teacher", str(teacher)])

    first, second = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert (long, other) == (2, 2)
    assert "takes rows of 16 tokens, and this run's have 32" in first
    assert "with the tokenizer other" in second
    assert recorder.events == []
