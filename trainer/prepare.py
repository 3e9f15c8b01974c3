"""Preparation of a run: all that depends on the user's input is checked and loaded.

In: TrainArgs.
Out: Prepared, from which the run can be built.
Never: records anything; a failure here leaves no run behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.emitter.connection import check_address
from shared.terminal import Say
from trainer.args import TrainArgs
from trainer.configure import (
    build_model_config,
    build_plan,
    describe_data,
    parse_model_options,
    row_length,
    run_identity,
)
from trainer.data.corpus import load_corpus
from trainer.data.masking import Masking
from trainer.data.token_cache import load_rows
from trainer.data.tokenizer import LoadedTokenizer, load_tokenizer
from trainer.errors import BadInput
from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.spans import SPANS, fit_spans
from trainer.names import name_run
from trainer.plan import Plan
from trainer.reporting.progress import Progress
from trainer.training.checkpoint import (
    Checkpoint,
    CheckpointDirectory,
    check_identity,
    read_checkpoint,
    tokenizer_of,
)
from trainer.training.compare import compare_arguments, compare_schedule, schedule_of
from trainer.training.device import resolve_device
from trainer.training.distillation import AVERAGED
from trainer.training.processes import Place, Processes
from trainer.training.resume import rebuild_model


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
    say = progress.say
    # Names and places: the checkpoint, the run's id, where checkpoints go.
    names = name_run(args, processes, say)
    checkpoint = names.checkpoint
    # Text and tokenizer, as packed rows.
    corpus = load_corpus(args.dataset, say)
    tokenizer = load_run_tokenizer(args, checkpoint, say)
    model_config = build_model_config(args, tokenizer.vocabulary_size)
    length = row_length(args, model_config, say)
    with processes.first_goes_first():  # the others read what the first has cached
        rows = load_rows(corpus, tokenizer, length, args.cache_dir, say)
    # The schedule, which needs the number of rows.
    plan = build_plan(args, len(rows["train"]), processes.world_size)
    model_config = _with_spans(args, model_config, plan, checkpoint)
    # The checkpoint has to fit this run; differences that are allowed are told to the user.
    identity = run_identity(model_config, args.seed, corpus, tokenizer, length)
    if checkpoint is not None:
        check_identity(checkpoint, identity, besides=SPANS)
        for sentence in _changes(args, plan, model_config, checkpoint):
            say(sentence)
    return Prepared(
        args=args,
        run_id=names.run_id,
        run_name=names.run_name,
        device=device,
        processes=processes,
        checkpoints=names.checkpoints,
        checkpoint=checkpoint,
        checkpoint_path=names.checkpoint_path,
        model_config=model_config,
        teacher=load_teacher(args.teacher, tokenizer, length),
        plan=plan,
        rows=rows,
        masking=Masking.with_tokenizer(tokenizer, args.mlm_probability),
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


def load_teacher(
    path: str | None, tokenizer: LoadedTokenizer, row_tokens: int
) -> BitNetQDyT | None:
    """Load the encoder of the checkpoint that --teacher names, onto the CPU.

    Returns None if it names none, or the average of the model itself.

    Raises:
        BadInput: there is no checkpoint, or it does not fit the run's tokenizer or rows.
    """
    if path is None or path == AVERAGED:
        return None
    try:
        checkpoint = read_checkpoint(Path(path))
        encoder = rebuild_model(checkpoint)
    except BadInput as exc:
        raise BadInput(f"--teacher: {exc}") from exc
    theirs = checkpoint["identity"]["tokenizer"]
    if theirs != tokenizer.identity:
        raise BadInput(
            f"--teacher {path} was trained with the tokenizer {theirs}, and this run has "
            f"{tokenizer.identity}: its predictions would mean other words"
        )
    if encoder.config.max_length < row_tokens:
        raise BadInput(
            f"--teacher {path} takes rows of {encoder.config.max_length} tokens, and this run's "
            f"have {row_tokens}; give --max_length {encoder.config.max_length}, or another teacher"
        )
    return encoder


def _with_spans(
    args: TrainArgs, config: ModelConfig, plan: Plan, checkpoint: Checkpoint | None
) -> ModelConfig:
    """Return the configuration with the spans of this run, or of the one that it resumes."""
    goes_on = checkpoint is not None and not args.change_schedule
    return fit_spans(
        config,
        plan.total_steps,
        chosen=parse_model_options(args.model_option),
        before=checkpoint["model_config"] if checkpoint and goes_on else None,
    )


def _changes(args: TrainArgs, plan: Plan, config: ModelConfig, checkpoint: Checkpoint) -> list[str]:
    """Return a sentence for each kind of difference from the checkpoint's run.

    Raises:
        BadInput: the schedule differs, and --change_schedule was not given.
    """
    schedule = schedule_of(plan, config)
    changes = compare_schedule(checkpoint, schedule, config, args.change_schedule)
    return changes + compare_arguments(
        checkpoint, args.as_config(), plan.rows_per_step, plan.world_size
    )


def _check_telemetry_arguments(args: TrainArgs) -> None:
    if args.telemetry_endpoint is not None:
        try:
            check_address(args.telemetry_endpoint)
        except ValueError as exc:
            raise BadInput(f"--telemetry_endpoint: {exc}") from exc
