"""A training run, from its arguments to its exit code; all its parts are put together here.

In: TrainArgs and the environment.
Out: checkpoints and records below the output directory; an exit code.
Never: lets a failure of telemetry change the exit code.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from trainer.args import TrainArgs
from trainer.build import build_training, held_out_batches
from trainer.errors import EXIT_FAILED, EXIT_INTERRUPTED
from trainer.facts import run_facts, start_config
from trainer.prepare import Prepared, check_arguments, prepare
from trainer.processes import make_processes, read_place
from trainer.reporting.observer import Observer
from trainer.reporting.progress import Progress, perplexity
from trainer.reporting.telemetry_link import open_telemetry
from trainer.training.device import allow_tf32, use_device
from trainer.training.evaluate import evaluate
from trainer.training.failures import explain
from trainer.training.loop import Training
from trainer.training.phases import EVALUATION
from trainer.training.stop import StopRequest


def run(args: TrainArgs, environ: Mapping[str, str]) -> int:
    """Train as the arguments say, and return the exit code.

    It is 0, or 128 plus the number of the signal that ended the run early.

    Raises:
        BadInput: an argument cannot be carried out; nothing was recorded.
        TrainingFailed: the run cannot go on.
    """
    place = read_place(environ)
    device = check_arguments(args, place)
    use_device(device)
    allow_tf32(device)
    with (
        make_processes(place, device) as processes,
        Progress(is_silent=not processes.is_first) as progress,
    ):
        prepared = prepare(args, device, processes, progress)
        telemetry = open_telemetry(args, prepared.run_id, processes, progress)
        with StopRequest() as stop, telemetry as observer:
            return train(prepared, observer, progress, stop)


def train(prepared: Prepared, observer: Observer, progress: Progress, stop: StopRequest) -> int:
    """Build the run's parts, train, and report the end; return the exit code."""
    # The run is recorded from here on: a failure while building is a failed run.
    observer.run_started(run_facts(prepared), start_config(prepared))
    training: Training | None = None
    # Train, then measure the test loss if the run is complete.
    try:
        training = build_training(prepared, observer, progress, stop)
        training.run()
        summary = summarize(training)
        if training.is_finished:
            summary |= test_summary(prepared, training, stop)
    # Failed: record the end, then let the caller print the error.
    except BaseException as exc:
        row_tokens = prepared.rows["train"].shape[1]
        error = explain(exc, prepared.args, row_tokens, prepared.processes.world_size)
        text = str(error) if error is not exc else f"{type(exc).__name__}: {exc}"
        progress.close()
        observer.message(text, "error")
        summary = {**(summarize(training) if training else {}), "error": text}
        is_interrupted = isinstance(exc, KeyboardInterrupt)
        exit_code = EXIT_INTERRUPTED if is_interrupted else EXIT_FAILED
        observer.finished("failed", exit_code, summary)
        if error is not exc:
            raise error from exc
        raise
    # Finished, or stopped by a signal.
    progress.close()
    # If only another process of the run got the signal, this one reports SIGTERM.
    exit_code = 0 if training.is_finished else stop.exit_code or 128 + signal.SIGTERM
    observer.finished("finished" if training.is_finished else "preempted", exit_code, summary)
    _say_summary(progress, training, summary)
    return exit_code


def summarize(training: Training) -> dict[str, Any]:
    """Return the steps done and the validation losses, as the end of a run records them."""
    values = {
        "steps": training.step,
        "final_val_loss": training.val_loss if training.evaluated_step == training.step else None,
        "best_val_loss": training.best_val_loss,
    }
    return {name: value for name, value in values.items() if value is not None}


def test_summary(prepared: Prepared, training: Training, stop: StopRequest) -> dict[str, float]:
    """Evaluate the test split once, after the last step; empty if a stop is requested."""
    with training.spans.of(EVALUATION, training.step):
        found = evaluate(
            training.model,
            held_out_batches(prepared, "test"),
            training.device,
            stop.is_requested,
            prepared.processes,
        )
    training.reporter.spans(training.spans.arrived(wait=True))
    if found is None:
        return {}
    return {"test_loss": found.loss.item(), "test_accuracy": found.accuracy.item()}


def _say_summary(progress: Progress, training: Training, summary: Mapping[str, Any]) -> None:
    losses = ", ".join(
        f"{label} {summary[name]:.4f} (perplexity {perplexity(summary[name]):,.1f})"
        for label, name in (
            ("validation loss", "final_val_loss"),
            ("best", "best_val_loss"),
            ("test", "test_loss"),
        )
        if name in summary
    )
    text = f"{training.step:,} of {training.plan.total_steps:,} steps done"
    progress.say(f"{text}: {losses}." if losses else f"{text}.")
    if not training.is_finished:
        progress.say("Go on with the same arguments and --resume_from latest.")
