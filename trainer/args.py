"""Arguments of a training run, as one frozen object that is built once.

In: the command line, and environment variables that give defaults of flags.
Out: TrainArgs, every value inside its range.
Never: imports torch, so that --help and a mistyped flag are answered at once.
"""

# ruff: noqa: RUF009  (the defaults that _flag wraps are immutable)
from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from shared.wandb_variables import said_of_run
from trainer.errors import BadInput

DATASETS = (
    "wikitext-2-v1",
    "wikitext-103-v1",
    "wikitext-2-raw-v1",
    "wikitext-103-raw-v1",
    "sample",
)

_UNSET = object()


def whole_number(minimum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from a minimum on, for an argument of argparse."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is below {minimum}, the least allowed")
        return value

    return parse


def _number(allowed: str, accepts: Callable[[float], bool]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not (math.isfinite(value) and accepts(value)):
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    return parse


_count = whole_number(0)
_positive = whole_number(1)
_positive_number = _number("above 0", lambda value: value > 0)
_number_from_0 = _number("0 or more", lambda value: value >= 0)
_probability = _number("above 0 and at most 1", lambda value: 0 < value <= 1)


def _flag(default: Any, help: str, **options: Any) -> Any:
    """Define a field of TrainArgs and the command-line flag of the same name."""
    return dataclasses.field(default=default, metadata={"help": help, **options})


def _switch(help: str) -> Any:
    return _flag(False, help, action="store_true")


@dataclass(frozen=True)
class TrainArgs:
    """All arguments of a run, in the order of --help."""

    model_size: str = _flag(
        "base", "dimensions of the model", choices=("tiny", "small", "base", "rtx", "large")
    )
    model_option: tuple[str, ...] = _flag(
        (), "change one field of the model's configuration", nargs="+", metavar="FIELD=VALUE"
    )
    dataset: str = _flag(
        "wikitext-103-v1",
        "text to learn from; `sample` is embedded and needs no network",
        choices=DATASETS,
    )
    tokenizer: str = _flag(
        "bert-base-uncased", "name on the hub, directory, or `shipped` for the embedded one"
    )
    max_length: int = _flag(512, "tokens in a row", type=whole_number(8))
    mlm_probability: float = _flag(0.15, "share of tokens to predict", type=_probability)
    cache_dir: Path = _flag(Path("./cache"), "where tokenized text is kept", type=Path)
    num_workers: int = _flag(4, "processes that prepare batches", type=_count)

    batch_size: int = _flag(32, "rows in a batch", type=_positive)
    gradient_accumulation_steps: int = _flag(1, "batches in an optimizer step", type=_positive)
    num_epochs: int = _flag(10, "passes through the text", type=_positive)
    max_steps: int | None = _flag(
        None, "optimizer steps; takes the place of --num_epochs", type=_positive
    )
    learning_rate: float = _flag(3e-4, "largest learning rate", type=_positive_number)
    weight_decay: float = _flag(0.01, "weight decay of AdamW", type=_number_from_0)
    warmup_steps: int = _flag(
        10_000,
        "steps of rising learning rate; by default in proportion in a run below 60,000 steps",
        type=_count,
    )
    scheduler: str = _flag(
        "cosine", "how the learning rate falls after warmup", choices=("linear", "cosine")
    )
    grad_clip: float = _flag(
        1.0, "largest norm of the gradients; 0 turns clipping off", type=_number_from_0
    )
    teacher: str | None = _flag(
        None,
        "also learn from a second encoder: `ema`, the average of the model itself, or a checkpoint",
        metavar="ema|CHECKPOINT",
    )
    teacher_temperature: float = _flag(
        2.0, "temperature of both predictions, with --teacher", type=_positive_number
    )
    teacher_weight: float = _flag(
        0.5,
        "weight of the teacher's loss at the last step; it rises from 0",
        type=_positive_number,
    )
    fp16: bool = _switch("mixed precision with a loss scale, on a GPU")
    bf16: bool = _switch("mixed precision in bfloat16, on a GPU or a CPU")
    seed: int = _flag(42, "seed of weights, order, masks and noise", type=_count)
    device: str = _flag("auto", "auto, cpu, cuda or cuda:N")

    output_dir: Path = _flag(Path("./outputs"), "where everything is written", type=Path)
    log_interval: int = _flag(100, "steps between logged metrics", type=_positive)
    eval_interval: int = _flag(1000, "steps between validations", type=_positive)
    eval_batches: int = _flag(
        0, "largest number of batches of a validation; 0 for all", type=_count
    )
    quant_interval: int = _flag(
        500, "steps between diagnostics of the quantizers; 0 for none", type=_count
    )
    quant_detail: bool = _switch("diagnostics and histograms of each layer as well")
    profile_blocks: bool = _switch(
        "measure the time of each block, in one step of every --log_interval"
    )
    save_interval: int = _flag(5000, "steps between checkpoints", type=_positive)
    keep_checkpoints: int = _flag(0, "newest checkpoints to keep; 0 for all", type=_count)
    resume_from: str | None = _flag(
        None, "checkpoint to resume from, or `latest` of --output_dir", metavar="PATH|latest"
    )
    change_schedule: bool = _switch(
        "resume although steps, warmup, learning rate or scheduler differ from the checkpoint's"
    )
    run_id: str | None = _flag(None, "id of the run in every record; generated by default")

    wandb_project: str = _flag("bitnet-qdyt-v2", "project in Weights & Biases")
    wandb_run_name: str | None = _flag(None, "name of the run; model size and time by default")
    wandb_tags: tuple[str, ...] = _flag(
        (), "tags; model size and dataset are added", nargs="+", metavar="TAG"
    )
    wandb_notes: str = _flag("", "notes on the run")
    wandb_mode: str = _flag(
        "",
        "where wandb keeps the run (default: online with an API key, offline without)",
        choices=("online", "offline", "disabled"),
    )
    disable_wandb: bool = _switch("no wandb, TensorBoard only")
    telemetry_endpoint: str | None = _flag(
        None, "address of a running sidecar; TELEMETRY_ENDPOINT by default"
    )
    spool_dir: Path | None = _flag(
        None,
        "where unsent events wait; TELEMETRY_SPOOL_DIR, else OUTPUT_DIR/spool, by default",
        type=Path,
    )
    no_sidecar: bool = _switch("do not start a sidecar for this run")

    given: frozenset[str] = frozenset()
    """The names of the arguments that were on the command line."""

    def effective_wandb_mode(self) -> str:
        """Return online, offline or disabled as a flag said it; empty where none did."""
        return "disabled" if self.disable_wandb else self.wandb_mode

    def as_config(self) -> dict[str, Any]:
        """Return every argument by name, in types that a journal and wandb take."""
        values = {field.name: getattr(self, field.name) for field in _flag_fields()}
        return {name: _plain(value) for name, value in values.items() if value is not None}


def parse_args(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> TrainArgs:
    """Read the command line.

    Raises:
        BadInput: an unknown flag, or a value out of its range.
        SystemExit: --help was asked for and has been printed.
    """
    parser = make_parser()
    # argparse sets a default only where the name is missing, so a value that is still _UNSET
    # afterwards was not on the command line.
    unset = argparse.Namespace(**{field.name: _UNSET for field in _flag_fields()})
    parsed = {k: v for k, v in vars(parser.parse_args(argv, unset)).items() if v is not _UNSET}
    given = frozenset(parsed)
    for name, variable in _FROM_ENVIRONMENT.items():
        if name not in given and environ.get(variable):
            parsed[name] = environ[variable]
    said = said_of_run(environ)
    for name, field in _FROM_WANDB_VARIABLES.items():
        if name not in given and field in said:
            parsed[name] = said[field]
    for name in ("model_option", "wandb_tags"):
        parsed[name] = tuple(parsed.get(name, ()))
    if parsed.get("spool_dir"):
        parsed["spool_dir"] = Path(parsed["spool_dir"])
    return TrainArgs(**parsed, given=given)


_FROM_ENVIRONMENT = {
    "telemetry_endpoint": "TELEMETRY_ENDPOINT",
    "spool_dir": "TELEMETRY_SPOOL_DIR",
}


_FROM_WANDB_VARIABLES = {
    "wandb_project": "project",
    "wandb_run_name": "name",
    "wandb_tags": "tags",
    "wandb_notes": "notes",
    "wandb_mode": "wandb_mode",
}
"""Flags whose value W&B's own variables give if the flag is missing.

By flag: the name of the field in said_of_run()."""


class FlagParser(argparse.ArgumentParser):
    """A parser whose errors are BadInput."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; `{self.prog} --help` lists every flag")


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of all flags of a training run."""
    parser = FlagParser(
        prog="python -m trainer",
        description="Train a ternary masked-language encoder. The commands `evaluate CHECKPOINT` "
        "and `export CHECKPOINT` take the place of these flags; each has a --help of its own.",
        allow_abbrev=False,
    )
    for field in _flag_fields():
        options = dict(field.metadata)
        text = options.pop("help")
        if field.default not in (None, (), "", False):
            text += f" (default: {field.default})"
        parser.add_argument(f"--{field.name}", help=text.replace("%", "%%"), **options)
    return parser


def _flag_fields() -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(TrainArgs) if field.metadata]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return " ".join(value)
    return str(value) if isinstance(value, Path) else value
