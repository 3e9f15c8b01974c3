"""One run, from its arguments to its exit code; the one place that knows all the parts.

In: TrainArgs and the environment.
Out: checkpoints and records below the output directory; an exit code.
Never: lets telemetry decide about the exit code.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.connection import check_endpoint
from shared.emitter import EventSink
from shared.ids import check_run_id, new_run_id
from trainer.args import TrainArgs
from trainer.checkpoint import Checkpoint, CheckpointDirectory, check_identity, read_checkpoint
from trainer.configure import (
    build_model_config,
    build_plan,
    describe_data,
    describe_model,
    row_length,
    run_identity,
)
from trainer.corpus import load_corpus
from trainer.data import Masking, TrainingBatches, evaluation_batches, load_batches
from trainer.errors import BadInput
from trainer.evaluate import evaluate
from trainer.loop import Plan, Training
from trainer.model import BitNetQDyT, ModelConfig
from trainer.observe import Observer, RunFacts, open_emitter
from trainer.progress import Progress
from trainer.sidecar import PrivateAddress, Sidecar, start_sidecar
from trainer.stop import StopRequest
from trainer.token_cache import load_rows
from trainer.tokenizer import load_tokenizer

UNHEARD_CLOSE_TIMEOUT_S = 0.5
"""How long to wait for acknowledgements at the end when there is nobody to give any."""


@dataclass(frozen=True)
class Prepared:
    """What is known before anything is recorded: nothing here can fail any more."""

    args: TrainArgs
    run_id: str
    device: torch.device
    checkpoints: CheckpointDirectory
    checkpoint: Checkpoint | None
    model_config: ModelConfig
    plan: Plan
    rows: dict[str, Tensor]
    masking: Masking
    identity: dict[str, Any]
    data_config: dict[str, Any]


def run(args: TrainArgs, environ: Mapping[str, str]) -> int:
    """Train as the arguments say; 0, or 128 and the signal that ended the run early.

    Raises:
        BadInput: something that was asked for cannot be done; nothing was recorded.
        TrainingDiverged: the loss is no longer a number.
    """
    with Progress() as progress:
        prepared = prepare(args, environ, progress)
        with StopRequest() as stop, open_telemetry(prepared, progress) as telemetry:
            observer = Observer(telemetry)
            return train(prepared, observer, progress, stop)


def prepare(args: TrainArgs, environ: Mapping[str, str], progress: Progress) -> Prepared:
    """Check and load everything that a user can get wrong.

    Raises:
        BadInput: the first thing found wrong.
    """
    say = progress.say
    _refuse_several_processes(environ)
    device = resolve_device(args.device, args.fp16)
    _check_telemetry_arguments(args)
    build_model_config(args, vocabulary_size=8192)  # before the slow part, to fail early
    checkpoints = CheckpointDirectory(args.output_dir, args.keep_checkpoints)
    checkpoint = None
    if args.resume_from:
        checkpoint = read_checkpoint(checkpoints.resolve(args.resume_from))
    run_id = resolve_run_id(args.run_id, checkpoint)
    check_writable(args.output_dir)

    corpus = load_corpus(args.dataset, say)
    tokenizer = load_tokenizer(args.tokenizer, args.dataset, say)
    model_config = build_model_config(args, tokenizer.vocabulary_size)
    length = row_length(args, model_config, say)
    rows = load_rows(corpus, tokenizer, length, args.cache_dir, say)
    plan = build_plan(args, len(rows["train"]), say)
    identity = run_identity(model_config, args.seed, corpus, tokenizer, length)
    if checkpoint is not None:
        check_identity(checkpoint, identity)
    return Prepared(
        args=args,
        run_id=run_id,
        device=device,
        checkpoints=checkpoints,
        checkpoint=checkpoint,
        model_config=model_config,
        plan=plan,
        rows=rows,
        masking=Masking.of(
            tokenizer.vocabulary_size,
            tokenizer.special_ids,
            tokenizer.mask_id,
            tokenizer.pad_id,
            args.mlm_probability,
        ),
        identity=identity,
        data_config=describe_data(corpus, tokenizer, rows, plan),
    )


def train(prepared: Prepared, observer: Observer, progress: Progress, stop: StopRequest) -> int:
    """Build, train, and tell how it ended; returns the exit code."""
    observer.run_started(run_facts(prepared), start_config(prepared))
    training: Training | None = None
    try:
        training = build_training(prepared, observer, progress, stop)
        training.run()
        summary = summarize(training)
        if training.step >= training.plan.total_steps:
            summary |= test_summary(prepared, training)
    except BaseException as exc:
        text = f"{type(exc).__name__}: {exc}"
        progress.close()
        observer.message(text, "error")
        summary = {**(summarize(training) if training else {}), "error": text}
        observer.finished("failed", 1, summary)
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
        observer=observer,
        progress=progress,
        checkpoints=prepared.checkpoints,
        stop=stop,
    )
    if prepared.checkpoint is not None:
        training.load(prepared.checkpoint)
    return training


@contextmanager
def open_telemetry(prepared: Prepared, progress: Progress) -> Iterator[EventSink]:
    """An emitter, and a sidecar of this run's own where none was named."""
    args, say = prepared.args, progress.say
    sidecar: Sidecar | None = None
    spool_dir = args.spool_dir or args.output_dir / "spool"
    with ExitStack() as stack:
        endpoint = args.telemetry_endpoint
        if endpoint is None:
            endpoint = stack.enter_context(PrivateAddress())
            if args.no_sidecar:
                say(f"No sidecar: nothing is recorded but the spool in {spool_dir}.")
            else:
                sidecar = start_sidecar(endpoint, args.output_dir / "telemetry", say)
        has_listener = sidecar is not None or args.telemetry_endpoint is not None
        emitter = open_emitter(
            endpoint,
            prepared.run_id,
            spool_dir,
            5.0 if has_listener else UNHEARD_CLOSE_TIMEOUT_S,
            say,
        )
        try:
            yield emitter
        finally:
            progress.close()
            is_recorded = emitter.close()
            if sidecar is not None:
                sidecar.close(say)
            if has_listener and not is_recorded:
                say(
                    f"{emitter.stats().queued:,} events are not recorded yet; they wait in "
                    f"{spool_dir} for the next run, or a sidecar, that starts there."
                )


def run_facts(prepared: Prepared) -> RunFacts:
    """What the run is called and where it belongs."""
    args, device = prepared.args, prepared.device
    return RunFacts(
        project=args.wandb_project,
        name=args.wandb_run_name or f"{args.model_size}-{time.strftime('%Y%m%d-%H%M%S')}",
        tags=list(dict.fromkeys([*args.wandb_tags, args.model_size, args.dataset])),
        notes=args.wandb_notes,
        wandb_mode=args.effective_wandb_mode(),
        rank=0,
        world_size=1,
        gpu_uuids=gpu_uuids(device),
        resumed_from_step=prepared.checkpoint["step"] if prepared.checkpoint else None,
    )


def start_config(prepared: Prepared) -> dict[str, Any]:
    """The run's config as far as it is known before the model is built."""
    on_gpu = prepared.device.type == "cuda"
    return {
        **prepared.args.as_config(),
        **prepared.data_config,
        "device": str(prepared.device),
        "device_name": torch.cuda.get_device_name(prepared.device) if on_gpu else "cpu",
        "world_size": 1,
        "torch_version": torch.__version__,
    }


def summarize(training: Training) -> dict[str, Any]:
    """How far a run came."""
    values = {
        "steps": training.step,
        "final_val_loss": training.val_loss,
        "best_val_loss": training.best_val_loss,
    }
    return {name: value for name, value in values.items() if value is not None}


def test_summary(prepared: Prepared, training: Training) -> dict[str, float]:
    """The loss on the text that no decision was made on; once, after the last step."""
    batches = _evaluation(prepared, "test")
    loss = evaluate(training.model, batches, training.device, training.autocast)
    return {} if loss is None else {"test_loss": loss.item()}


def resolve_device(name: str, fp16: bool) -> torch.device:
    """The device that --device means.

    Raises:
        BadInput: there is none of that name, or it has no fp16 to train with.
    """
    has_gpu = torch.cuda.is_available()
    chosen = ("cuda" if has_gpu else "cpu") if name == "auto" else name
    try:
        device = torch.device(chosen)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise BadInput(f"--device {name} is none of auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise BadInput(f"--device {name}: torch finds {count} GPUs here; give another, or cpu")
    if fp16 and device.type == "cpu":
        raise BadInput("--fp16 needs a GPU, and this run is on the CPU; leave --fp16 out")
    return device


def resolve_run_id(asked: str | None, checkpoint: Checkpoint | None) -> str:
    """The run's name: the checkpoint's, the one asked for, or a new one.

    Raises:
        BadInput: not a valid name, or not that of the checkpoint.
    """
    if asked is not None:
        try:
            check_run_id(asked)
        except ValueError as exc:
            raise BadInput(f"--run_id: {exc}") from exc
    if checkpoint is None:
        return asked or new_run_id()
    saved: str = checkpoint["run_id"]
    if asked not in (None, saved):
        raise BadInput(
            f"--run_id {asked} is not the checkpoint's run {saved}; leave --run_id out to go on "
            "with that run, or --resume_from to start another"
        )
    return saved


def check_writable(output_dir: Path) -> None:
    """Make the output directory and write into it.

    Raises:
        BadInput: that is not possible.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as file:
            file.write(b"?")
    except OSError as exc:
        raise BadInput(
            f"--output_dir {output_dir} cannot be written ({exc.strerror}); "
            "name another directory, or free it"
        ) from exc


def gpu_uuids(device: torch.device) -> list[str]:
    """The UUID of the GPU in use, as NVML writes it; empty on a CPU."""
    if device.type != "cuda":
        return []
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return [f"GPU-{uuid}"] if uuid else []


def _evaluation(prepared: Prepared, split: str) -> Iterator[Any]:
    args = prepared.args
    return evaluation_batches(
        prepared.rows[split],
        args.batch_size,
        prepared.masking,
        args.seed,
        args.eval_batches,
    )


def _refuse_several_processes(environ: Mapping[str, str]) -> None:
    world_size = environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise BadInput(
            f"WORLD_SIZE is {world_size}: training in several processes is not possible yet; "
            "start one process, without torchrun"
        )


def _check_telemetry_arguments(args: TrainArgs) -> None:
    if args.telemetry_endpoint is not None:
        try:
            check_endpoint(args.telemetry_endpoint)
        except ValueError as exc:
            raise BadInput(f"--telemetry_endpoint: {exc}") from exc


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
