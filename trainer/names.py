"""The names of a run, and the checkpoint that it resumes from.

In: TrainArgs, and the checkpoints of the output directory.
Out: its id and name, the same in all processes; where its checkpoints go.
Never: writes anything that stays, except the output directory itself.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from shared.files import make_directory
from shared.ids import check_run_id, new_run_id
from shared.terminal import Say
from shared.wandb_limits import cleaned
from trainer.args import TrainArgs
from trainer.errors import BadInput
from trainer.training.checkpoint import Checkpoint, CheckpointDirectory, read_checkpoint
from trainer.training.processes import Processes


class RunNames(NamedTuple):
    """The id and name of a run, its directory of checkpoints, and the one it resumes from."""

    run_id: str
    run_name: str
    checkpoints: CheckpointDirectory
    checkpoint: Checkpoint | None
    checkpoint_path: Path | None


def name_run(args: TrainArgs, processes: Processes, say: Say) -> RunNames:
    """Read the checkpoint of --resume_from, and name the run.

    Raises:
        BadInput: the checkpoint, the id or the output directory cannot be used.
    """
    checkpoint = path = None
    if args.resume_from:
        path = CheckpointDirectory(args.output_dir).resolve(args.resume_from)
        checkpoint = read_checkpoint(path)
    run_id = resolve_run_id(args.run_id, checkpoint)
    run_name = resolve_run_name(args, checkpoint)
    run_id, run_name = processes.share([run_id, run_name])
    check_writable(args.output_dir)
    for change in cleaned(wandb_names(args, run_name)).changes:
        say(f"{change}.")
    checkpoints = CheckpointDirectory(args.output_dir, args.keep_checkpoints, run_id, path)
    if checkpoints.is_anothers():
        say(
            f"{checkpoints.path} has checkpoints of another run: those of this run go to "
            f"{checkpoints.path / run_id}, beside them."
        )
    return RunNames(run_id, run_name, checkpoints, checkpoint, path)


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


def wandb_names(args: TrainArgs, run_name: str) -> dict[str, Any]:
    """Return project, name, tags and notes for W&B, before they are cut to its limits."""
    return {
        "project": args.wandb_project,
        "name": run_name,
        "tags": list(dict.fromkeys([*args.wandb_tags, args.model_size, args.dataset])),
        "notes": args.wandb_notes,
    }


def check_writable(output_dir: Path) -> None:
    """Make the output directory, and check that it can be written.

    Raises:
        BadInput: it cannot be made or written.
    """
    try:
        make_directory(output_dir)
        with tempfile.TemporaryFile(dir=output_dir) as file:
            file.write(b"?")
    except OSError as exc:
        raise BadInput(
            f"--output_dir {output_dir} cannot be written ({exc.strerror}); "
            "name another directory, or free it"
        ) from exc
