"""A training run, from its arguments to its exit code; all its parts are put together here.

In: TrainArgs and the environment.
Out: checkpoints and records below the output directory; an exit code.
Never: lets a failure of telemetry change the exit code.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from trainer.args import TrainArgs
from trainer.configure import describe_model
from trainer.data.batches import (
    Batch,
    TrainingBatches,
    evaluation_batches,
    load_batches,
    usable_workers,
)
from trainer.errors import PeerLost, TrainingFailed
from trainer.evaluation.evaluate import evaluate
from trainer.model import BitNetQDyT
from trainer.model.spans import describe_schedule
from trainer.model.teacher import AveragedTeacher, Teacher
from trainer.prepare import (
    Prepared,
    check_arguments,
    checkpoint_facts,
    prepare,
    run_facts,
    start_config,
)
from trainer.reporting.observer import Observer
from trainer.reporting.progress import Progress, perplexity
from trainer.reporting.reports import Reporter
from trainer.reporting.telemetry_link import open_telemetry
from trainer.training.allocator import keep_freed_memory
from trainer.training.device import allow_tf32, use_device
from trainer.training.distillation import AVERAGED, Guidance, TeacherGuidance
from trainer.training.loop import Training
from trainer.training.memory import explain_out_of_memory
from trainer.training.processes import is_peer_failure, make_processes, read_place
from trainer.training.random_states import seed_noise
from trainer.training.step import Stepper
from trainer.training.stop import StopRequest

PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


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
        with StopRequest() as stop, open_telemetry(prepared, progress) as observer:
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
        if training.step >= training.plan.total_steps:
            summary |= test_summary(prepared, training, stop)
    # Failed: record the end, then let the caller print the error.
    except BaseException as exc:
        error = explain(exc, prepared)
        text = str(error) if error is not exc else f"{type(exc).__name__}: {exc}"
        progress.close()
        observer.message(text, "error")
        summary = {**(summarize(training) if training else {}), "error": text}
        observer.finished("failed", 130 if isinstance(exc, KeyboardInterrupt) else 1, summary)
        if error is not exc:
            raise error from exc
        raise
    # Finished, or stopped by a signal.
    progress.close()
    is_finished = training.step >= training.plan.total_steps
    # If only another process of the run got the signal, this one reports SIGTERM.
    exit_code = 0 if is_finished else stop.exit_code or 128 + signal.SIGTERM
    observer.finished("finished" if is_finished else "preempted", exit_code, summary)
    _say_summary(progress, training, summary, is_finished)
    return exit_code


def explain(error: BaseException, prepared: Prepared) -> BaseException:
    """Return an error with a sentence for the user if the cause is known, else the error."""
    if isinstance(error, TrainingFailed):
        return error
    if prepared.processes.world_size > 1 and is_peer_failure(error):
        return PeerLost(
            "another process of this run has ended or does not answer; its own messages tell "
            "the cause. Go on with --resume_from latest"
        )
    return explain_out_of_memory(error, prepared.args, prepared.rows["train"].shape[1]) or error


def build_training(
    prepared: Prepared, observer: Observer, progress: Progress, stop: StopRequest
) -> Training:
    """Build the model and everything that trains it, and load the checkpoint if there is one."""
    args, plan, device = prepared.args, prepared.plan, prepared.device
    processes = prepared.processes
    # The model; its initial weights are the same in all processes.
    torch.manual_seed(args.seed)
    if device.type == "cpu":
        keep_freed_memory()
    model = BitNetQDyT(prepared.model_config, seed=args.seed).to(device)
    model_facts = describe_model(model, prepared.model_config)
    observer.config_updated(model_facts)
    # Tell the user what will be trained, and how.
    together = f" in {processes.world_size} processes" if processes.world_size > 1 else ""
    progress.say(
        f"Run {prepared.run_id}: {args.model_size} with {model_facts['total_parameters']:,} "
        f"parameters on {device}{together}, {plan.total_steps:,} steps of "
        f"{plan.rows_per_step} rows, {plan.rows_per_epoch:,} rows an epoch."
    )
    if device.type == "cuda":
        progress.say(
            "In training, factors of float32 products are rounded to TF32 (not with "
            "NVIDIA_TF32_OVERRIDE=0); in evaluation they are not."
        )
    for sentence in describe_schedule(prepared.model_config, plan):
        progress.say(sentence)
    # The optimizer.
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        model.parameter_groups(args.weight_decay),
        lr=args.learning_rate,
        betas=(0.9, 0.98),
        eps=1e-8,
        # With a gradient scaler, an optimizer that is not fused reads a flag from the GPU
        # in each step, and waits for it.
        fused=True,
    )
    # From here on each process has random noise of its own.
    seed_noise(args.seed, processes.rank)
    # The data. More workers than cores slow each other down; the batches are the same.
    num_workers = min(args.num_workers, len(os.sched_getaffinity(0)))
    num_workers = usable_workers(num_workers, progress.say)
    source = TrainingBatches(
        prepared.rows["train"],
        plan.batch_size,
        prepared.masking,
        args.seed,
        processes.rank,
        processes.world_size,
    )
    # The loop, and the state of the checkpoint.
    training = Training(
        plan=plan,
        stepper=Stepper(model, device, PRECISIONS[plan.precision], processes),
        optimizer=optimizer,
        guidance=make_guidance(prepared, model),
        batches_from=lambda position: load_batches(source, position, num_workers, on_gpu),
        validation=lambda: _evaluation(prepared, "validation"),
        facts=checkpoint_facts(prepared),
        reporter=Reporter(observer, progress, processes.rank),
        checkpoints=prepared.checkpoints,
        stop=stop,
    )
    if prepared.checkpoint is not None:
        training.load(prepared.checkpoint, prepared.checkpoint_path)
        if args.teacher == AVERAGED and not prepared.checkpoint["teacher"]:
            progress.say("The checkpoint has no averaged teacher: it begins as the model is now.")
    return training


def make_guidance(prepared: Prepared, model: BitNetQDyT) -> Guidance:
    """Build the teacher that --teacher names, or a Guidance without one."""
    args = prepared.args
    if args.teacher is None:
        return Guidance()
    if prepared.teacher is None:
        teacher: Teacher = AveragedTeacher(model)
    else:
        teacher = Teacher(prepared.teacher.to(prepared.device))
    return TeacherGuidance(model, teacher, args.teacher_temperature, args.teacher_weight)


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
    found = evaluate(
        training.model,
        _evaluation(prepared, "test"),
        training.device,
        stop.is_requested,
        prepared.processes,
    )
    if found is None:
        return {}
    return {"test_loss": found.loss.item(), "test_accuracy": found.accuracy.item()}


def _evaluation(prepared: Prepared, split: str) -> Iterator[Batch]:
    args = prepared.args
    return evaluation_batches(
        prepared.rows[split],
        args.batch_size,
        prepared.masking,
        args.eval_batches,
        prepared.processes.rank,
        prepared.processes.world_size,
    )


def _say_summary(
    progress: Progress, training: Training, summary: Mapping[str, Any], is_finished: bool
) -> None:
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
    if not is_finished:
        progress.say("Go on with the same arguments and --resume_from latest.")
