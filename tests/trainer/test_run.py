"""Whole runs of a tiny model on a few rows of the embedded text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.events import (
    ConfigUpdated,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
)
from trainer.__main__ import main
from trainer.training.checkpoint import read_checkpoint
from trainer.training.step import Stepper

TRAIN_NAMES = {
    "train/loss",
    "train/learning_rate",
    "train/qdrop_probability",
    "train/training_stage",
    "train/epoch",
    "train/global_step",
    "train/grad_norm",
    "train/tokens_per_second",
    "train/step_seconds",
    "train/input_seconds",
    "train/forward_seconds",
    "train/backward_seconds",
    "train/optimizer_seconds",
}
PHASES = {"time/evaluation_seconds", "time/checkpoint_seconds"}


def out(small_run: list[str]) -> Path:
    return Path(small_run[small_run.index("--output_dir") + 1])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["model"]


def test_a_run_tells_everything_that_happened(small_run, recorder):
    """Start, config, metrics under their published names, stages, and the end."""
    code = main([*small_run, "--run_id", "told", "--wandb_tags", "mine", "--disable_wandb"])

    started, finished = recorder.events[0], recorder.events[-1]
    assert code == 0
    assert isinstance(started, RunStarted)
    assert started.wandb_mode == "disabled"
    assert started.tags == ["mine", "tiny", "sample"]
    assert started.resumed_from_step is None
    assert started.pid == os.getpid()
    assert {"batch_size", "learning_rate", "dataset_sha256", "tokenizer_sha256", "vocab_size",
            "train_rows", "train_batches", "steps_per_epoch", "total_steps", "device",
            "world_size"} <= started.config.keys()  # fmt: skip
    [updated] = recorder.of(ConfigUpdated)
    assert updated.config["total_parameters"] >= updated.config["trainable_parameters"] > 0
    assert updated.config["model/layers"] == 4
    train = [e for e in recorder.of(MetricsLogged) if e.kind == "train"]
    assert [event.step for event in train] == [1, 2, 3, 4]
    assert all(event.values.keys() == TRAIN_NAMES for event in train)
    assert list(recorder.metrics("val", "val/loss")) == [2, 4]
    assert all(value > 1 for value in recorder.metrics("val", "val/perplexity").values())
    assert [e.step for e in recorder.of(MetricsLogged) if e.kind == "quant"] == [2, 4]
    phases = [e for e in recorder.of(MetricsLogged) if e.values.keys() & PHASES]
    # Each is told when it ends; the last is the evaluation of the test split.
    assert [(e.kind, e.step, *e.values) for e in phases] == [
        ("custom", 2, "time/evaluation_seconds"),
        ("custom", 4, "time/evaluation_seconds"),
        ("custom", 4, "time/checkpoint_seconds"),
        ("custom", 4, "time/evaluation_seconds"),
    ]
    stages = [e.text for e in recorder.of(MessageLogged) if e.text.startswith("Stage")]
    assert [text.split()[1] for text in stages] == ["partial_ternary", "full_ternary"]
    assert isinstance(finished, RunFinished)
    assert (finished.status, finished.exit_code) == ("finished", 0)
    assert {"steps", "final_val_loss", "best_val_loss", "test_loss"} <= finished.summary.keys()


@pytest.mark.parametrize("is_detailed", [False, True])
def test_layers_are_told_of_one_by_one_only_where_asked(small_run, recorder, is_detailed):
    """Metrics and histograms of each layer, and the time of each block, have flags of their own."""
    detail = ["--quant_detail", "--profile_blocks"] if is_detailed else []

    code = main([*small_run, *detail])

    names = {name for event in recorder.of(MetricsLogged) for name in event.values}
    histograms = {event.name for event in recorder.of(HistogramLogged)}
    by_layer = {name for name in names | histograms if "layers." in name}
    assert code == 0
    assert {"quant/zero_ratio", "quant/activation_sqnr_db", "quant/flip_rate_per_step"} <= names
    assert {"quant/latent_weights", "quant/scales"} <= histograms
    assert bool(by_layer) == is_detailed
    if is_detailed:
        assert {
            "quant/layers.3.ffn.up/zero_ratio",
            "quant/layers.3.ffn.up/scale_mean",
            "quant/layers.3.ffn.up/threshold_mean",
            "quant/layers.0.attention.q/latent_weights",
            "quant/layers.0.attention.q/scales",
            "time/layers.2/backward_seconds",
        } <= by_layer


def test_a_run_ends_with_a_summary(small_run, recorder, capsys):
    """How far it came, and every loss with its perplexity, on one line."""
    main(small_run)

    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("4 of 4 steps done: validation loss ")
    assert line.count("(perplexity ") == 3
    assert "best" in line and "test" in line


def test_values_are_plain_python(small_run, recorder):
    """A live tensor in an event would stall the GPU when it is read."""
    main(small_run)

    values = [v for e in recorder.of(MetricsLogged) for v in e.values.values()]
    assert values
    assert {type(value) for value in values} <= {float, int, str, bool}


def test_the_loss_falls(small_run, recorder):
    """The smallest sign that all parts pull in one direction."""
    run = [*small_run, "--max_steps", "30", "--batch_size", "16", "--learning_rate", "3e-3"]

    main([*run, "--warmup_steps", "3", "--eval_interval", "100"])

    losses = list(recorder.metrics("train", "train/loss").values())
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 1


@pytest.mark.parametrize("extra", ["", "--bf16 --teacher ema --gradient_accumulation_steps 2"])
def test_a_resumed_run_is_the_uninterrupted_run_exactly(small_run, recorder, extra):
    """Same losses, same weights, same run id, through all stages and in mid-window."""
    run = [*small_run, "--max_steps", "12", "--save_interval", "5", "--log_interval", "2"]
    run += extra.split()
    main([*run, "--run_id", "whole"])
    whole, whole_end = recorder.metrics("train", "train/loss"), read_checkpoint(last(small_run))
    whole_val = recorder.metrics("val", "val/loss")
    recorder.events.clear()

    code = main([*run, "--resume_from", str(out(small_run) / "checkpoints" / "step-000005")])

    resumed, started = recorder.metrics("train", "train/loss"), recorder.events[0]
    assert code == 0
    assert started.resumed_from_step == 5
    assert resumed == {step: loss for step, loss in whole.items() if step > 5}
    assert recorder.metrics("val", "val/loss") == {s: v for s, v in whole_val.items() if s > 5}
    resumed_end = read_checkpoint(last(small_run))
    assert resumed_end["run_id"] == "whole"
    assert bool(resumed_end["teacher"]) == ("--teacher" in extra)
    for part in ("model", "teacher"):
        assert resumed_end[part].keys() == whole_end[part].keys()
        for name, tensor in whole_end[part].items():
            assert torch.equal(resumed_end[part][name], tensor), name


def last(small_run: list[str]) -> Path:
    checkpoints = out(small_run) / "checkpoints"
    return checkpoints / (checkpoints / "latest").read_text().strip()


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    small_run, recorder, number, exit_code
):
    """The run says that it was preempted, and latest goes on from there to the same end."""
    recorder.on_event = lambda event: (
        signal.raise_signal(number)
        if getattr(event, "kind", "") == "train" and event.step == 2
        else None
    )

    code = main([*small_run, "--eval_interval", "100", "--quant_interval", "0"])

    finished = recorder.events[-1]
    assert code == exit_code
    assert (finished.status, finished.exit_code) == ("preempted", exit_code)
    assert finished.summary["steps"] == 2
    assert read_checkpoint(last(small_run))["step"] == 2
    recorder.on_event = lambda event: None
    assert main([*small_run, "--resume_from", "latest"]) == 0
    assert recorder.events[-1].summary["steps"] == 4


@pytest.mark.parametrize("poisoned", ["loss", "gradients"])
def test_a_divergence_ends_the_run_with_a_checkpoint_of_the_last_good_state(
    small_run, recorder, monkeypatch, capsys, poisoned
):
    """No traceback: a sentence says how to go on, and the weights are those before the poison."""
    accumulate = Stepper.accumulate_gradients
    steps = iter(range(1, 100))

    def diverge(stepper, micro_batches):
        loss = accumulate(stepper, micro_batches)
        if next(steps) < 3:
            return loss
        for parameter in stepper.model.parameters():
            parameter.grad.fill_(float("nan"))
        return loss * float("nan") if poisoned == "loss" else loss

    monkeypatch.setattr(Stepper, "accumulate_gradients", diverge)
    run = [*small_run, "--max_steps", "9", "--save_interval", "2", "--log_interval", "5"]

    code = main(run)

    error = capsys.readouterr().err
    good = weights(out(small_run) / "checkpoints" / "step-000002")
    kept = weights(last(small_run))
    assert code == 1
    assert "Training stopped: loss or gradients are no numbers any more" in error
    assert f"--resume_from {last(small_run)}" in error
    assert "Traceback" not in error
    assert recorder.events[-1].status == "failed"
    matrices = [name for name in good if name.endswith(".weight")]
    assert matrices and all(torch.equal(kept[name], good[name]) for name in matrices)
    monkeypatch.undo()
    assert main([*small_run, "--max_steps", "9", "--resume_from", "latest"]) == 0


def test_after_a_divergence_the_last_good_checkpoint_is_named(
    small_run, recorder, monkeypatch, capsys
):
    """It is whole, and going on from it is one flag."""
    update = Stepper.update

    def ruin(stepper, optimizer):
        update(stepper, optimizer)
        if optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == 3:
            with torch.no_grad():
                next(stepper.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Stepper, "update", ruin)

    # Logged at no step, so that the checkpoint of step 4 is what finds out.
    code = main([*small_run, "--save_interval", "1", "--log_interval", "100"])

    good = out(small_run) / "checkpoints" / "step-000002"
    assert code == 1
    assert f"go on from the last good one with --resume_from {good}" in capsys.readouterr().err
    assert last(small_run) == good
    assert all(weight.isfinite().all() for weight in weights(good).values())


def test_out_of_memory_is_one_sentence_and_exit_code_1(small_run, recorder, monkeypatch, capsys):
    """No traceback: it says what to lower."""

    def explode(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Stepper, "accumulate_gradients", explode)

    code = main(small_run)

    error = capsys.readouterr().err
    assert code == 1
    assert "Training stopped: out of memory; lower --batch_size from 4" in error
    assert "Traceback" not in error
    assert recorder.events[-1].status == "failed"


def test_an_error_in_training_is_recorded_and_goes_on_to_the_user(small_run, recorder, monkeypatch):
    """The record has its text; the traceback is Python's own."""

    def explode(*args):
        raise RuntimeError("out of everything")

    monkeypatch.setattr(Stepper, "accumulate_gradients", explode)

    with pytest.raises(RuntimeError, match="out of everything"):
        main(small_run)

    finished = recorder.events[-1]
    assert (finished.status, finished.exit_code) == ("failed", 1)
    assert "out of everything" in finished.summary["error"]
    assert any("out of everything" in m.text for m in recorder.of(MessageLogged))


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(small_run, recorder, capsys):
    """A bad disk costs the checkpoint, not the days of training; it is said and recorded."""
    out(small_run).mkdir()
    (out(small_run) / "checkpoints").touch()

    code = main([*small_run, "--save_interval", "2"])

    assert code == 0
    assert "cannot be written" in capsys.readouterr().err
    assert any(message.level == "error" for message in recorder.of(MessageLogged))


def test_a_broken_emitter_changes_nothing(small_run, recorder, capsys):
    """Training goes on, and the trouble is told once."""

    def break_down(event):
        raise RuntimeError("telemetry is broken")

    recorder.on_event = break_down

    code = main(small_run)

    assert code == 0
    assert capsys.readouterr().err.count("Telemetry failed") == 1


def test_it_trains_without_wandb_and_without_the_sidecar(small_run, tmp_path):
    """Neither is imported; the events wait in the spool."""
    block = (
        "import sys; sys.modules['wandb'] = sys.modules['telemetry'] = None; "
        "import trainer.reporting.sidecar; trainer.reporting.sidecar.is_installed = lambda: False; "
        "from trainer.__main__ import main; code = main(sys.argv[1:]); "
        "assert not {'tensorboard', 'psutil'} & sys.modules.keys(); sys.exit(code)"
    )
    run = [argument for argument in small_run if argument != "--no_sidecar"]

    done = subprocess.run(
        [sys.executable, "-c", block, *run],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert "The sidecar is not installed: nothing is recorded but the spool" in done.stderr
    assert list((out(small_run) / "spool").iterdir())
