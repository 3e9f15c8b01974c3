"""Configuration: a run's plan, model settings, recorded config and identity.

In: TrainArgs, the packed rows, the model.
Out: plain values, and a sentence for each that the user might not expect.
Never: builds a model or reads a file.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from torch import Tensor

from shared.terminal import Say
from trainer.args import TrainArgs
from trainer.data.corpus import Corpus
from trainer.data.tokenizer import LoadedTokenizer
from trainer.errors import BadInput
from trainer.model import ModelConfig
from trainer.model.spans import shorten
from trainer.plan import Plan


def build_model_config(args: TrainArgs, vocabulary_size: int) -> ModelConfig:
    """Build the model's configuration from the arguments.

    Raises:
        BadInput: it cannot be built, or is too short for the rows that were asked for.
    """
    options = parse_model_options(args.model_option)
    try:
        config = ModelConfig.for_size(args.model_size, vocabulary_size, **options)
    except (ValueError, TypeError) as exc:
        raise BadInput(f"--model_option cannot be used: {exc}") from exc
    if "max_length" in args.given and args.max_length > config.max_length:
        raise BadInput(
            f"--max_length {args.max_length} is more than the {config.max_length} tokens of "
            f"--model_size {args.model_size}; give at most {config.max_length}, or another size"
        )
    return config


def row_length(args: TrainArgs, config: ModelConfig, say: Say) -> int:
    """Return the tokens in a row: --max_length, but at most what the model takes."""
    if args.max_length > config.max_length:
        say(f"Rows have {config.max_length} tokens, the most that size {args.model_size} takes.")
    return min(args.max_length, config.max_length)


def build_plan(args: TrainArgs, training_rows: int, world_size: int = 1) -> Plan:
    """Build the plan of a run.

    Raises:
        BadInput: there is no text, or the warmup is not shorter than the run.
    """
    if not training_rows:
        raise BadInput(f"dataset {args.dataset} has no text to learn from")
    rows_per_step = args.batch_size * args.gradient_accumulation_steps * world_size
    total_steps = args.max_steps or math.ceil(args.num_epochs * training_rows / rows_per_step)
    return Plan(
        total_steps=total_steps,
        warmup_steps=_warmup_steps(args, total_steps),
        batch_size=args.batch_size,
        accumulation=args.gradient_accumulation_steps,
        rows_per_epoch=training_rows,
        learning_rate=args.learning_rate,
        scheduler=cast(Literal["linear", "cosine"], args.scheduler),
        grad_clip=args.grad_clip,
        precision="fp16" if args.fp16 else "bf16" if args.bf16 else "fp32",
        log_interval=args.log_interval,
        eval_interval=args.eval_interval,
        quant_interval=args.quant_interval,
        save_interval=args.save_interval,
        quant_detail=args.quant_detail,
        profile_blocks=args.profile_blocks,
        world_size=world_size,
    )


def describe_data(
    corpus: Corpus, tokenizer: LoadedTokenizer, rows: Mapping[str, Tensor], plan: Plan
) -> dict[str, Any]:
    """Return the part of a run's config about text, vocabulary and batches."""
    counts = {f"{split}_rows": len(part) for split, part in rows.items()}
    batches = {
        f"{split}_batches": math.ceil(len(part) / plan.batch_size) for split, part in rows.items()
    }
    return {
        "dataset_sha256": corpus.sha256,
        "dataset_paragraphs": sum(map(len, corpus.splits.values())),
        "tokenizer_name": tokenizer.name,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocabulary_size,
        "row_tokens": next(iter(rows.values())).shape[1],
        **counts,
        **batches,
        "steps_per_epoch": math.ceil(plan.rows_per_epoch / plan.rows_per_step),
        "total_steps": plan.total_steps,
        "effective_warmup_steps": plan.warmup_steps,
        "effective_batch_size": plan.rows_per_step,
    }


def run_identity(
    config: ModelConfig, seed: int, corpus: Corpus, tokenizer: LoadedTokenizer, row_tokens: int
) -> dict[str, Any]:
    """Return the values that must equal those of the checkpoint a run resumes from."""
    return {
        "seed": seed,
        "row length": row_tokens,
        "dataset": corpus.identity,
        "tokenizer": tokenizer.identity,
        **dataclasses.asdict(config),
    }


def parse_model_options(options: Sequence[str]) -> dict[str, Any]:
    """Parse --model_option into fields of the model's configuration, by name.

    Raises:
        BadInput: an option is not FIELD=VALUE.
    """
    parsed = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or name == "vocab_size":
            raise BadInput(
                f"--model_option {option!r} is not FIELD=VALUE with a field of the model's "
                "configuration other than vocab_size; for example weight_mode=absmean"
            )
        try:
            parsed[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parsed[name] = text
    return parsed


def _warmup_steps(args: TrainArgs, total_steps: int) -> int:
    if "warmup_steps" not in args.given:
        return shorten(args.warmup_steps, total_steps)
    if args.warmup_steps >= total_steps:
        raise BadInput(
            f"--warmup_steps {args.warmup_steps} is not less than the {total_steps} steps of "
            "this run; give fewer, or train longer with --max_steps or --num_epochs"
        )
    return args.warmup_steps
