"""Command line of the trainer: `python -m trainer [evaluate|export]`.

Errors that a user can cause are told in one line, without a traceback.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# `python -m` searches the working directory before everything else. If this package is
# installed elsewhere, a folder `shared` in the working directory is not ours.
ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and not sys.flags.safe_path and Path(sys.path[0]).resolve() != ROOT:
    del sys.path[0]
found = importlib.util.find_spec("shared")
places = [] if found is None else list(found.submodule_search_locations or [])
if places and Path(places[0]).resolve() != ROOT / "shared":
    sys.exit(f"error: {places[0]} hides our package `shared`; take it out of PYTHONPATH")

# ruff: noqa: E402 - the imports below need the path as it is now
from shared.terminal import prepare_streams
from trainer.args import parse_args
from trainer.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    BadInput,
    TrainingFailed,
)
from trainer.evaluation.checkpoint_args import COMMANDS, parse_checkpoint_args


def main(argv: Sequence[str] | None = None) -> int:
    """Train, evaluate or export, as the command line says; return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # By default OpenMP threads spin while they wait for one another, which is slow when other
    # programs need the cores: 130 tokens/s against 4,000 on two busy cores. The OpenMP runtime
    # reads this variable when torch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare_streams()
    try:
        if argv and argv[0] in COMMANDS:
            return _run_command(argv)
        args = parse_args(argv)
        # Imported here, so that --help and a mistyped flag do not wait for torch.
        from trainer.run import run

        return run(args, os.environ)
    except BadInput as exc:
        print(f"error: {exc}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except TrainingFailed as exc:
        print(f"Training stopped: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run_command(argv: Sequence[str]) -> int:
    args = parse_checkpoint_args(argv)
    from trainer.evaluation.commands import run_command

    return run_command(args, lambda text: print(text, flush=True))


if __name__ == "__main__":
    sys.exit(main())
