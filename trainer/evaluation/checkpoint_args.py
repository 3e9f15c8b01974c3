"""Arguments of the commands `evaluate` and `export`, which read a checkpoint.

In: the command line.
Out: CheckpointArgs.
Never: imports torch, so that --help and a mistyped flag are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.args import DATASETS, FlagParser, whole_number

COMMANDS = ("evaluate", "export")


@dataclass(frozen=True)
class CheckpointArgs:
    """All arguments of evaluate or export; a None in dataset or batch_size is the run's own."""

    command: str
    checkpoint: Path
    split: str
    dataset: str | None
    batch_size: int | None
    eval_batches: int
    cache_dir: Path
    device: str
    calibrate: bool
    analyze_quantization: bool = False
    report: Path | None = None
    out: Path | None = None


def parse_checkpoint_args(argv: Sequence[str]) -> CheckpointArgs:
    """Read the command line, the command's name first.

    Raises:
        BadInput: an unknown flag, or a value out of its range.
        SystemExit: --help was asked for and has been printed.
    """
    return CheckpointArgs(
        command=argv[0], **vars(make_checkpoint_parser(argv[0]).parse_args(argv[1:]))
    )


def make_checkpoint_parser(command: str) -> argparse.ArgumentParser:
    """Build the parser of the flags of one of the COMMANDS."""
    what = {"evaluate": "Loss and perplexity of a checkpoint.", "export": "Pack a checkpoint."}
    parser = FlagParser(
        prog=f"python -m trainer {command}", description=what[command], allow_abbrev=False
    )
    add, count = parser.add_argument, whole_number(0)
    add("checkpoint", type=Path, help="directory step-… of a run", metavar="CHECKPOINT")
    add("--split", choices=("validation", "test"), default="validation", help="held-out text")
    add("--dataset", choices=DATASETS, help="text instead of the run's own")
    add("--batch_size", type=whole_number(1), help="rows in a batch; the run's by default")
    add(
        "--eval_batches",
        type=count,
        default=0,
        help="largest number of batches; 0 for all",
    )
    add("--cache_dir", type=Path, default=Path("./cache"), help="where tokenized text is kept")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--calibrate", action="store_true", help="fix group means of QDyT if that lowers the loss")
    if command == "evaluate":
        add("--analyze_quantization", action="store_true", help="tables and pictures by layer")
        add(
            "--report",
            type=Path,
            metavar="FILE",
            help="page of the pictures; quantization-STEP.html beside CHECKPOINT by default",
        )
    else:
        add("--out", type=Path, required=True, help="directory of the export")
    return parser
