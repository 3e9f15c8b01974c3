"""Checkpoints: all state of a run that is needed to continue it exactly.

In: the state of a run between two steps, as tensors and plain values.
Out: OUTPUT_DIR/checkpoints/step-000500/, and the file checkpoints/latest, which names it.
Never: leaves half a checkpoint under a checkpoint's name, replaces one of another run, or
runs code from a checkpoint that it reads.

The first run in an OUTPUT_DIR has its checkpoints in checkpoints/, a later one in
checkpoints/RUN_ID/. A resumed run writes beside the checkpoint that it resumed from, if that
is in the same OUTPUT_DIR. `latest` names the newest checkpoint of all these runs, for example
RUN_ID/step-000500.

A checkpoint is a directory of these files:

    model.safetensors      weights and buffers, by their names in the model
    optimizer.safetensors  PARAMETER.NAME: AdamW's state NAME, parameters by their number
    teacher.safetensors    the averaged teacher, if the run has one
    state.json             everything that is not a tensor:

    format         2
    run_id, run_name
    step           optimizer steps done, of total_steps
    schedule       total_steps, learning_rate, scheduler, warmup_steps and the model's spans
    rows_per_step  rows in an optimizer step, in all processes together
    position       rows read since the start, in the order that the seed determines
    best_val_loss  float or null, measured with the masks of evaluation_seed
    identity       values that a resumed run must share: seed, row length, dataset and
                   tokenizer with their hashes, fields of the model's configuration
    arguments      the arguments of the process that wrote the checkpoint
    model_config   the fields of the model's configuration
    param_groups, scaler   state of the optimizer and of the gradient scaler
    random         a list by rank: states of the python, numpy and torch generators
    window         loss_sum and steps since the last logged step
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.files import (
    make_directory,
    sync_directory,
    write_atomically,
    write_directory_atomically,
)
from trainer.errors import BadInput

FORMAT = 2
LATEST = "latest"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
TEACHER = "teacher.safetensors"

Checkpoint = dict[str, Any]
"""The values of state.json, and "model", "optimizer" and "teacher" as state dicts. "teacher" is
empty if there is none, and param_groups are within "optimizer"."""


class CheckpointDirectory:
    """The checkpoint directory of one run within an output directory.

    A run with a run_id has a subdirectory of that name if there are checkpoints of another
    run already; a run without one always uses checkpoints/ itself. A run that resumed from a
    checkpoint in this output directory writes beside it. The directory is made at the first
    checkpoint, which reserves it for this run. keep is the number of newest checkpoints that
    are kept, 0 for all. Not thread-safe.
    """

    def __init__(
        self,
        output_dir: Path,
        keep: int = 0,
        run_id: str | None = None,
        resumed_from: Path | None = None,
    ) -> None:
        self.path = output_dir / "checkpoints"
        self._keep, self._run_id, self._resumed_from = keep, run_id, resumed_from
        self._own: Path | None = None

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, make `latest` name it, and delete the oldest above `keep`.

        Raises:
            OSError: it cannot be written; `latest` still names the checkpoint before.
        """
        if self._own is None:
            self._own = self._take_directory()
        target = self._own / f"step-{checkpoint['step']:06d}"
        write_directory_atomically(target, lambda directory: _write(checkpoint, directory))
        name = target.relative_to(self.path)
        write_atomically(self.path / LATEST, f"{name}\n".encode())
        self._delete_oldest(target)
        return target

    def resolve(self, resume_from: str) -> Path:
        """Return the directory that --resume_from names.

        Raises:
            BadInput: it is `latest`, and there is no checkpoint.
        """
        if resume_from != LATEST:
            return Path(resume_from)
        try:
            name = (self.path / LATEST).read_text().strip()
        except OSError as exc:
            raise BadInput(
                f"--resume_from latest: {self.path} holds no checkpoint; "
                "check --output_dir, or start anew without --resume_from"
            ) from exc
        return self.path / name

    def is_anothers(self) -> bool:
        """True if there are checkpoints already and this run did not resume from them."""
        return self._place_of_resumed() is None and self.path.exists()

    def _place_of_resumed(self) -> Path | None:
        """Return the directory here that the run's checkpoint came from; None if elsewhere."""
        if self._resumed_from is None:
            return None
        place, ours = self._resumed_from.resolve().parent, self.path.resolve()
        if ours not in (place, place.parent):
            return None
        return self.path / place.relative_to(ours)

    def _take_directory(self) -> Path:
        place = self._place_of_resumed()
        if place is not None:
            return place
        make_directory(self.path.parent)
        # mkdir succeeds for one run only, also if two begin at the same time.
        if _make(self.path) or self._run_id is None:
            return self.path
        names = (self._run_id if n == 1 else f"{self._run_id}-{n}" for n in itertools.count(1))
        return next(self.path / name for name in names if _make(self.path / name))

    def _delete_oldest(self, newest: Path) -> None:
        if self._keep:
            found = (path for path in newest.parent.glob("step-*") if path != newest)
            others = sorted(found, key=lambda path: (len(path.name), path.name))
            for path in others[: max(0, len(others) + 1 - self._keep)]:
                shutil.rmtree(path, ignore_errors=True)


def _make(path: Path) -> bool:
    """Make a directory, its name durable; return False if it exists already."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    sync_directory(path.parent)
    return True


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        BadInput: there is none, it is damaged, or its format is not the one we read.
    """
    way_out = "name another one, or train anew"
    try:
        state = json.loads((path / STATE).read_bytes())
        _check_format(state, path, way_out)
        model, optimizer = load_file(path / MODEL), load_file(path / OPTIMIZER)
        teacher = load_file(path / TEACHER) if (path / TEACHER).exists() else {}
        groups = state.pop("param_groups")
        return {
            **state,
            "model": model,
            "optimizer": _unpack_optimizer(optimizer, groups),
            "teacher": teacher,
        }
    except FileNotFoundError as exc:
        missing = f"{exc.filename} is missing" if exc.filename else str(exc)
        raise BadInput(f"checkpoint {path} cannot be read: {missing}; {way_out}") from exc
    except OSError as exc:
        raise BadInput(f"checkpoint {path} cannot be read: {exc.strerror}; {way_out}") from exc
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BadInput(f"checkpoint {path} cannot be read: it is damaged; {way_out}") from exc


def tokenizer_of(checkpoint: Checkpoint) -> str:
    """Return the name of the tokenizer that a run used.

    It differs from the --tokenizer of the run if the shipped one took the default's place.
    """
    name: str = checkpoint["identity"]["tokenizer"].rpartition(" ")[0]
    return name


def check_identity(
    checkpoint: Checkpoint, identity: Mapping[str, Any], besides: Collection[str] = ()
) -> None:
    """Refuse to resume with another model, other data or another seed.

    besides holds names that are not compared here.

    Raises:
        BadInput: a value differs; the message names the first.
    """
    saved = checkpoint["identity"]
    for name in [*identity, *(set(saved) - set(identity))]:
        if name not in besides and saved.get(name) != identity.get(name):
            raise BadInput(
                f"the checkpoint was made with {name} {saved.get(name)!r}, this run has "
                f"{identity.get(name)!r}; give the arguments of the first run, or start anew"
            )


def _check_format(state: Any, path: Path, way_out: str) -> None:
    found = state.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise BadInput(
            f"checkpoint {path} was written by a newer version of this trainer (format {found}, "
            f"this one reads {FORMAT}); update this one, or {way_out}"
        )
    if found != FORMAT:
        raise BadInput(f"checkpoint {path} is not of this trainer's format {FORMAT}; {way_out}")


def _write(checkpoint: Checkpoint, directory: Path) -> None:
    """Write the files of a checkpoint into a directory.

    Raises:
        OSError: the disk is full, or writing is not allowed.
    """
    state = {k: v for k, v in checkpoint.items() if k not in ("model", "optimizer", "teacher")}
    state["param_groups"] = checkpoint["optimizer"]["param_groups"]
    try:
        save_file(_plain(checkpoint["model"]), directory / MODEL)
        save_file(_plain(_pack_optimizer(checkpoint["optimizer"])), directory / OPTIMIZER)
        if checkpoint.get("teacher"):
            save_file(_plain(checkpoint["teacher"]), directory / TEACHER)
    except SafetensorError as exc:  # safetensors wraps errors of the disk in its own
        raise OSError(str(exc)) from exc
    (directory / STATE).write_text(json.dumps(state, indent=1) + "\n")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _pack_optimizer(optimizer: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": tensor
        for number, kept in optimizer["state"].items()
        for name, tensor in kept.items()
    }


def _unpack_optimizer(tensors: Mapping[str, Tensor], groups: list[Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    return {"state": state, "param_groups": groups}
