"""Preparation of a run: all that depends on the user's input is checked and loaded.

In: TrainArgs.
Out: Prepared, from which the run can be built.
Never: records anything; a failure here leaves no run behind.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.emitter.connection import check_address
from shared.ids import check_run_id, new_run_id
from shared.wandb_limits import cleaned
from trainer.args import TrainArgs
from trainer.configure import (
    Say,
    build_model_config,
    build_plan,
    describe_data,
    parse_model_options,
    row_length,
    run_identity,
)
from trainer.data.batches import Masking
from trainer.data.corpus import load_corpus
from trainer.data.token_cache import load_rows
from trainer.data.tokenizer import LoadedTokenizer, load_tokenizer
from trainer.errors import BadInput
from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.spans import SPANS, fit_spans
from trainer.plan import Plan
from trainer.reporting.observer import RunFacts
from trainer.reporting.progress import Progress
from trainer.training.checkpoint import (
    Checkpoint,
    CheckpointDirectory,
    check_identity,
    read_checkpoint,
    tokenizer_of,
)
from trainer.training.compare import compare_arguments, compare_schedule, schedule_of
from trainer.training.device import gpu_uuids, resolve_device
from trainer.training.distillation import AVERAGED, load_teacher
from trainer.training.processes import Place, Processes


@dataclass(frozen=True)
class Prepared:
    """The checked arguments, data and facts that a run is built from."""

    args: TrainArgs
    run_id: str
    run_name: str
    device: torch.device
    processes: Processes
    checkpoints: CheckpointDirectory
    checkpoint: Checkpoint | None
    checkpoint_path: Path | None
    model_config: ModelConfig
    teacher: BitNetQDyT | None
    plan: Plan
    rows: dict[str, Tensor]
    masking: Masking
    identity: dict[str, Any]
    data_config: dict[str, Any]
    tokenizer_name: str


def check_arguments(args: TrainArgs, place: Place) -> torch.device:
    """Check arguments before the processes of a run connect; return this process's device.

    Raises:
        BadInput: an argument is wrong; the message names the first.
    """
    if args.fp16 and args.bf16:
        raise BadInput("--fp16 and --bf16 are two precisions; give one of them")
    for name in ("teacher_temperature", "teacher_weight"):
        if name in args.given and args.teacher is None:
            raise BadInput(f"--{name} does nothing without --teacher; give both or neither")
    if args.change_schedule and args.resume_from is None:
        raise BadInput("--change_schedule does nothing without --resume_from; give both or neither")
    device = resolve_device(args.device, args.fp16, place)
    _check_telemetry_arguments(args)
    build_model_config(args, vocabulary_size=8192)  # fails early, before text is loaded
    return device


def prepare(
    args: TrainArgs, device: torch.device, processes: Processes, progress: Progress
) -> Prepared:
    """Check and load everything that depends on the user's input.

    Raises:
        BadInput: something is wrong; the message names the first thing found.
    """
    # Names and places: the checkpoint, the run's id, where checkpoints go.
    say = progress.say
    checkpoint = checkpoint_path = None
    if args.resume_from:
        checkpoint_path = CheckpointDirectory(args.output_dir).resolve(args.resume_from)
        checkpoint = read_checkpoint(checkpoint_path)
    run_id = resolve_run_id(args.run_id, checkpoint)
    run_name = resolve_run_name(args, checkpoint)
    run_id, run_name = processes.share([run_id, run_name])
    check_writable(args.output_dir)
    for change in cleaned(wandb_names(args, run_name)).changes:
        say(f"{change}.")
    checkpoints = CheckpointDirectory(
        args.output_dir, args.keep_checkpoints, run_id, checkpoint_path
    )
    if checkpoints.is_anothers():
        say(
            f"{checkpoints.path} has checkpoints of another run: those of this run go to "
            f"{checkpoints.path / run_id}, beside them."
        )

    # Text and tokenizer, as packed rows.
    corpus = load_corpus(args.dataset, say)
    tokenizer = load_run_tokenizer(args, checkpoint, say)
    model_config = build_model_config(args, tokenizer.vocabulary_size)
    length = row_length(args, model_config, say)
    with processes.first_goes_first():  # the others read what the first has cached
        rows = load_rows(corpus, tokenizer, length, args.cache_dir, say)
    # The schedule, which needs the number of rows.
    plan = build_plan(args, len(rows["train"]), processes.world_size)
    goes_on = checkpoint is not None and not args.change_schedule
    model_config = fit_spans(
        model_config,
        plan.total_steps,
        chosen=parse_model_options(args.model_option),
        before=checkpoint["model_config"] if checkpoint and goes_on else None,
    )
    # The checkpoint has to fit this run; differences that are allowed are told to the user.
    identity = run_identity(model_config, args.seed, corpus, tokenizer, length)
    if checkpoint is not None:
        check_identity(checkpoint, identity, besides=SPANS)
        schedule = schedule_of(plan, model_config)
        changes = compare_schedule(checkpoint, schedule, model_config, args.change_schedule)
        changes += compare_arguments(
            checkpoint, args.as_config(), plan.rows_per_step, processes.world_size
        )
        for sentence in changes:
            say(sentence)
    teacher = None
    if args.teacher not in (None, AVERAGED):
        teacher = load_teacher(args.teacher, identity["tokenizer"], length)
    return Prepared(
        args=args,
        run_id=run_id,
        run_name=run_name,
        device=device,
        processes=processes,
        checkpoints=checkpoints,
        checkpoint=checkpoint,
        checkpoint_path=checkpoint_path,
        model_config=model_config,
        teacher=teacher,
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
        tokenizer_name=tokenizer.name,
    )


def load_run_tokenizer(args: TrainArgs, checkpoint: Checkpoint | None, say: Say) -> LoadedTokenizer:
    """Load the tokenizer of --tokenizer; without the flag, the checkpoint's or the default.

    Raises:
        BadInput: it could not be loaded.
    """
    is_chosen = "tokenizer" in args.given
    if checkpoint is None or is_chosen:
        return load_tokenizer(args.tokenizer, args.dataset, say, is_chosen)
    return load_tokenizer(tokenizer_of(checkpoint), args.dataset, say, is_chosen=True)


def resolve_run_id(asked: str | None, checkpoint: Checkpoint | None) -> str:
    """Return the run's id: the checkpoint's, that of --run_id, or a new one.

    Raises:
        BadInput: --run_id is not valid, or not the checkpoint's.
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


def resolve_run_name(args: TrainArgs, checkpoint: Checkpoint | None) -> str:
    """Return the run's name: --wandb_run_name, the checkpoint's, or model size and time."""
    if args.wandb_run_name:
        return args.wandb_run_name
    if checkpoint is not None:
        return str(checkpoint["run_name"])
    return f"{args.model_size}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_writable(output_dir: Path) -> None:
    """Make the output directory, and check that it can be written.

    Raises:
        BadInput: it cannot be made or written.
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


def checkpoint_facts(prepared: Prepared) -> dict[str, Any]:
    """Return the part of a checkpoint that is the same after every step."""
    return {
        "run_id": prepared.run_id,
        "run_name": prepared.run_name,
        "total_steps": prepared.plan.total_steps,
        "identity": prepared.identity,
        "schedule": schedule_of(prepared.plan, prepared.model_config),
        "rows_per_step": prepared.plan.rows_per_step,
        "arguments": {**prepared.args.as_config(), "tokenizer": prepared.tokenizer_name},
        "model_config": asdict(prepared.model_config),
    }


def run_facts(prepared: Prepared) -> RunFacts:
    """Return the run's names and place, as RunStarted tells them."""
    args, device = prepared.args, prepared.device
    return RunFacts(
        **wandb_names(args, prepared.run_name),
        wandb_mode=args.effective_wandb_mode(),
        rank=prepared.processes.rank,
        world_size=prepared.processes.world_size,
        gpu_uuids=gpu_uuids(device),
        resumed_from_step=prepared.checkpoint["step"] if prepared.checkpoint else None,
    )


def wandb_names(args: TrainArgs, run_name: str) -> dict[str, Any]:
    """Return project, name, tags and notes for W&B, before they are cut to its limits."""
    return {
        "project": args.wandb_project,
        "name": run_name,
        "tags": list(dict.fromkeys([*args.wandb_tags, args.model_size, args.dataset])),
        "notes": args.wandb_notes,
    }


def start_config(prepared: Prepared) -> dict[str, Any]:
    """Return the run's config, without the part that needs the model to be built."""
    on_gpu = prepared.device.type == "cuda"
    return {
        **prepared.args.as_config(),
        # The tokenizer in use; the shipped one may have taken the default's place.
        "tokenizer": prepared.tokenizer_name,
        "tf32": on_gpu,
        "evaluation_precision": "fp32",
        **prepared.data_config,
        "device": str(prepared.device),
        "device_name": torch.cuda.get_device_name(prepared.device) if on_gpu else "cpu",
        "world_size": prepared.processes.world_size,
        "torch_version": torch.__version__,
    }


def _check_telemetry_arguments(args: TrainArgs) -> None:
    if args.telemetry_endpoint is not None:
        try:
            check_address(args.telemetry_endpoint)
        except ValueError as exc:
            raise BadInput(f"--telemetry_endpoint: {exc}") from exc
