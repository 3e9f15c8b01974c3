"""One run, from its arguments to its exit code; the one place that knows all the parts.

In: TrainArgs and the environment.
Out: checkpoints and records below the output directory; an exit code.
Never: lets telemetry decide about the exit code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from trainer.args import TrainArgs
from trainer.configure import describe_model
from trainer.data import Batch, TrainingBatches, evaluation_batches, load_batches
from trainer.evaluate import evaluate
from trainer.loop import Training
from trainer.model import BitNetQDyT
from trainer.observe import Observer
from trainer.prepare import Prepared, prepare, run_facts, start_config
from trainer.progress import Progress
from trainer.stop import StopRequest
from trainer.telemetry_link import open_telemetry


def run(args: TrainArgs, environ: Mapping[str, str]) -> int:
    """Train as the arguments say; 0, or 128 and the signal that ended the run early.

    Raises:
        BadInput: something that was asked for cannot be done; nothing was recorded.
        TrainingDiverged: the loss is no longer a number.
    """
    with Progress() as progress:
        prepared = prepare(args, environ, progress)
        with StopRequest() as stop, open_telemetry(prepared, progress) as observer:
            return train(prepared, observer, progress, stop)


def train(prepared: Prepared, observer: Observer, progress: Progress, stop: StopRequest) -> int:
    """Build, train, and tell how it ended; returns the exit code."""
    observer.run_started(run_facts(prepared), start_config(prepared))
    training: Training | None = None
    try:
        training = build_training(prepared, observer, progress, stop)
        training.run()
        summary = summarize(training)
        if training.step >= training.plan.total_steps:
            summary |= test_summary(prepared, training, stop)
    except BaseException as exc:
        text = f"{type(exc).__name__}: {exc}"
        progress.close()
        observer.message(text, "error")
        summary = {**(summarize(training) if training else {}), "error": text}
        observer.finished("failed", 130 if isinstance(exc, KeyboardInterrupt) else 1, summary)
        raise
    progress.close()
    is_finished = training.step >= training.plan.total_steps
    exit_code = 0 if is_finished else stop.exit_code
    observer.finished("finished" if is_finished else "preempted", exit_code, summary)
    _say_summary(progress, training, summary, is_finished)
    return exit_code


def build_training(
    prepared: Prepared, observer: Observer, progress: Progress, stop: StopRequest
) -> Training:
    """Build the model and all that trains it; from the checkpoint, if there is one."""
    args, plan, device = prepared.args, prepared.plan, prepared.device
    torch.manual_seed(args.seed)
    model = BitNetQDyT(prepared.model_config, seed=args.seed).to(device)
    model_facts = describe_model(model, prepared.model_config)
    observer.config_updated(model_facts)
    progress.say(
        f"Run {prepared.run_id}: {args.model_size} with {model_facts['total_parameters']:,} "
        f"parameters on {device}, {plan.total_steps:,} steps of "
        f"{plan.batch_size * plan.accumulation} rows, {plan.rows_per_epoch:,} rows an epoch."
    )
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        model.parameter_groups(args.weight_decay),
        lr=args.learning_rate,
        betas=(0.9, 0.98),
        eps=1e-8,
        # Fused: with a gradient scaler any other kind reads a flag from the GPU each step.
        fused=on_gpu,
    )
    # More workers than cores only get in each other's way; the batches are the same.
    num_workers = min(args.num_workers, len(os.sched_getaffinity(0)))
    source = TrainingBatches(prepared.rows["train"], plan.batch_size, prepared.masking, args.seed)
    training = Training(
        plan=plan,
        model=model,
        optimizer=optimizer,
        device=device,
        batches_from=lambda position: load_batches(source, position, num_workers, on_gpu),
        validation=lambda: _evaluation(prepared, "validation"),
        identity=prepared.identity,
        run_id=prepared.run_id,
        run_name=prepared.run_name,
        observer=observer,
        progress=progress,
        checkpoints=prepared.checkpoints,
        stop=stop,
    )
    if prepared.checkpoint is not None:
        training.load(prepared.checkpoint)
    return training


def summarize(training: Training) -> dict[str, Any]:
    """How far a run came."""
    values = {
        "steps": training.step,
        "final_val_loss": training.val_loss if training.evaluated_step == training.step else None,
        "best_val_loss": training.best_val_loss,
    }
    return {name: value for name, value in values.items() if value is not None}


def test_summary(prepared: Prepared, training: Training, stop: StopRequest) -> dict[str, float]:
    """The loss on the text that no decision was made on; once, after the last step."""
    batches = _evaluation(prepared, "test")
    loss = evaluate(training.model, batches, training.device, training.autocast, stop.is_requested)
    return {} if loss is None else {"test_loss": loss.item()}


def _evaluation(prepared: Prepared, split: str) -> Iterator[Batch]:
    args = prepared.args
    return evaluation_batches(
        prepared.rows[split],
        args.batch_size,
        prepared.masking,
        args.seed,
        args.eval_batches,
    )


def _say_summary(
    progress: Progress, training: Training, summary: Mapping[str, Any], is_finished: bool
) -> None:
    losses = ", ".join(
        f"{label} {summary[name]:.4f} (perplexity {math.exp(min(summary[name], 700)):,.1f})"
        for label, name in (
            ("validation loss", "final_val_loss"),
            ("best", "best_val_loss"),
            ("test", "test_loss"),
        )
        if name in summary
    )
    text = f"{training.step:,} of {training.plan.total_steps:,} steps done"
    progress.say(f"{text}: {losses}." if losses else f"{text}.")
    if not is_finished:
        progress.say("Go on with the same arguments and --resume_from latest.")
