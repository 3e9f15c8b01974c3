"""Runs at their edges: nothing to predict, the border of a stage, other batches in validation."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from shared.events import MessageLogged, MetricsLogged
from tests.trainer.test_processes import run_two
from trainer.__main__ import main
from trainer.data.corpus import load_sample
from trainer.data.token_cache import load_rows
from trainer.data.tokenizer import load_tokenizer
from trainer.model.diagnostics.diagnostics import Diagnostics

SEP = 3


@pytest.fixture
def rows_of_separators(small_run, tmp_path: Path) -> list[str]:
    """A run on text of which only some rows have a word; they are drawn in an order of the seed."""
    tokenizer = load_tokenizer("shipped", "sample", print)
    load_rows(load_sample(), tokenizer, 16, tmp_path / "cache", print)
    [cached] = (tmp_path / "cache").iterdir()
    rows = torch.load(cached)
    rows["train"] = rows["train"][:8].clone()
    rows["train"][::2, 1:] = SEP
    torch.save(rows, cached)
    return [*small_run, "--cache_dir", str(tmp_path / "cache")]


@pytest.mark.parametrize("extra", ["", "--teacher ema", "--gradient_accumulation_steps 2"])
def test_a_step_with_nothing_to_predict_is_gone_through(
    recorder, capsys, rows_of_separators, extra
):
    """No division by 0; such a step has no loss, rather than one of 0, and moves no weight."""
    run = [*rows_of_separators, "--batch_size", "1", "--max_steps", "16", *extra.split()]

    code = main([*run, "--quant_interval", "4"])

    train = [e.values for e in recorder.of(MetricsLogged) if e.kind == "train"]
    losses = [values["train/loss"] for values in train if "train/loss" in values]
    assert code == 0
    assert len(train) == 16
    assert (0 < len(losses) < 16) or "accumulation" in extra
    numbers = [v for values in train for v in values.values() if isinstance(v, float)]
    assert all(math.isfinite(number) for number in numbers)
    assert all(loss > 1 for loss in losses)
    assert not any("no gradient" in message.text for message in recorder.of(MessageLogged))
    assert ("nothing to predict" in capsys.readouterr().err) == (len(losses) < 16)


def test_an_empty_step_moves_no_weight(recorder, rows_of_separators, monkeypatch):
    """The optimizer would otherwise go on with what it remembers of steps before."""
    from trainer.training.step import Stepper

    update, moved = Stepper.update, {True: [], False: []}

    def watched(stepper, optimizer):
        before = [p.detach().clone() for p in stepper.model.parameters()]
        update(stepper, optimizer)
        after = stepper.model.parameters()
        is_moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        moved[stepper.is_empty].append(is_moved)

    monkeypatch.setattr(Stepper, "update", watched)

    main([*rows_of_separators, "--batch_size", "1", "--max_steps", "12"])

    assert moved[True] and not any(moved[True])
    assert moved[False] and all(moved[False])


def test_an_evaluation_on_the_border_of_a_stage_has_the_quantizers_of_the_last_step(
    small_run, recorder, tmp_path, capsys
):
    """A weight that is to be ternary from the next step on is not yet measured as one."""
    border = ["--model_option", "stage1=0.5", "stage2=0.75", "--eval_interval", "1"]
    later = ["--model_option", "stage1=1.0", "stage2=1.0", "--eval_interval", "1"]
    main([*small_run, *border, "--save_interval", "2"])
    found = recorder.metrics("val", "val/loss")
    checkpoint = tmp_path / "out" / "checkpoints" / "step-000002"
    cache = small_run[small_run.index("--cache_dir") + 1]
    recorder.events.clear()
    main([*small_run, *later, "--output_dir", str(tmp_path / "later")])
    expected = recorder.metrics("val", "val/loss")
    capsys.readouterr()

    main(["evaluate", str(checkpoint), "--cache_dir", cache, "--eval_batches", "1"])

    evaluated = float(re.search(r"loss ([\d.]+)", capsys.readouterr().out)[1])
    assert found[2] == expected[2]
    assert found[3] != expected[3]
    assert evaluated == pytest.approx(found[2], abs=1e-4)


@pytest.mark.parametrize("extra", ["--seed 7", "--bf16"])
def test_a_validation_has_one_loss_and_an_accuracy(small_run, recorder, extra, monkeypatch):
    """The seed and the precision of training decide weights, and no masks and no rounding."""
    seen = []
    from trainer.training.evaluate import evaluate

    def watched(model, batches, *rest):
        batches = list(batches)
        seen.append(([b.input_ids for b in batches], torch.is_autocast_enabled("cpu")))
        return evaluate(model, iter(batches), *rest)

    monkeypatch.setattr("trainer.training.loop.evaluate", watched)
    main(small_run)
    expected = seen.copy()
    seen.clear()
    recorder.events.clear()

    main([*small_run, *extra.split()])

    accuracies = recorder.metrics("val", "val/accuracy")
    assert list(accuracies) == [2, 4]
    assert all(0 <= value <= 1 for value in accuracies.values())
    assert not any(is_autocast for _, is_autocast in seen)
    for (ours, _), (theirs, _) in zip(seen, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_two_processes_validate_as_one(small_run, recorder, tmp_path):
    """The same rows and masks in other hands: the loss of the same weights is the same."""
    run = [*small_run, "--max_steps", "1", "--learning_rate", "1e-12", "--eval_batches", "6"]
    run += ["--quant_interval", "0", "--model_option", "layers=1", "activation_mode=float"]
    main([*run, "--output_dir", str(tmp_path / "one")])
    alone = recorder.metrics("val", "val/loss")[1]

    said = run_two([*run, "--disable_wandb"])

    together = float(re.search(r"step 1: validation loss ([\d.]+)", said)[1])
    assert together == pytest.approx(alone, abs=2e-4)


def test_codes_are_watched_in_the_window_before_a_diagnostic_alone(
    small_run, recorder, monkeypatch
):
    """Other steps do nothing for it."""
    watched = []
    watch = Diagnostics.watch_codes
    monkeypatch.setattr(
        Diagnostics, "watch_codes", lambda own, step: (watched.append(step), watch(own, step))
    )

    main([*small_run, "--max_steps", "40", "--quant_interval", "20", "--eval_interval", "100"])

    assert watched == [*range(12, 20), *range(32, 40)]
    last = [e.values for e in recorder.of(MetricsLogged) if e.kind == "quant"][-1]
    assert {"quant/flip_rate_per_step", "quant/oscillation_rate_per_step"} <= last.keys()
    assert 0 <= last["quant/oscillating_ratio"] <= 1
