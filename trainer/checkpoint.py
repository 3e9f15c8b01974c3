"""Checkpoints: everything that a run needs to go on as if it had never stopped.

In: the state of a run between two steps, as tensors and plain values.
Out: OUTPUT_DIR/checkpoints/step-000500.pt, and the file `latest` beside it with that name.
Never: leaves half a checkpoint under a checkpoint's name, or runs code from one it reads.

A checkpoint is a dict:

    format         1
    run_id         str
    run_name       str
    step           optimizer steps done
    position       rows read, in the order that the seed gives them
    best_val_loss  float or None
    identity       what must not change in mid-run: model fields, seed, hashes of text and tokens
    model, optimizer, scaler       their state_dict()
    random         states of the python, numpy and torch generators
    window         what the next logged mean already holds
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from trainer.errors import BadInput
from trainer.files import write_atomically

FORMAT = 1
LATEST = "latest"

Checkpoint = dict[str, Any]


class CheckpointDirectory:
    """The checkpoints of one output directory."""

    def __init__(self, output_dir: Path, keep: int = 0) -> None:
        self.path = output_dir / "checkpoints"
        self._keep = keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, point `latest` at it, and delete what is more than keep.

        Raises:
            OSError: `latest` still names the one before.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.path / f"step-{checkpoint['step']:06d}.pt"
        write_atomically(target, lambda file: torch.save(checkpoint, file))
        write_atomically(self.path / LATEST, lambda file: file.write(f"{target.name}\n".encode()))
        self._delete_oldest(target)
        return target

    def resolve(self, resume_from: str) -> Path:
        """The file that --resume_from means.

        Raises:
            BadInput: `latest`, and there is none.
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

    def _delete_oldest(self, newest: Path) -> None:
        if self._keep:
            found = (path for path in self.path.glob("step-*.pt") if path != newest)
            others = sorted(found, key=lambda path: (len(path.name), path.name))
            for path in others[: max(0, len(others) + 1 - self._keep)]:
                path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        BadInput: there is none, it is damaged, or another program's.
    """
    way_out = "take another with --resume_from PATH, or start anew without it"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load documents no exceptions: a cut zip, a wrong pickle and a missing file differ.
    except Exception as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else "it is damaged"
        raise BadInput(f"checkpoint {path} cannot be read: {reason}; {way_out}") from exc
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise BadInput(f"checkpoint {path} is not of this trainer's format {FORMAT}; {way_out}")
    return checkpoint


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with another model, other data or another seed.

    Raises:
        BadInput: names the first difference.
    """
    saved = checkpoint["identity"]
    for name in [*identity, *(set(saved) - set(identity))]:
        if saved.get(name) != identity.get(name):
            raise BadInput(
                f"the checkpoint was made with {name} {saved.get(name)!r}, this run has "
                f"{identity.get(name)!r}; give the arguments of the first run, or start anew"
            )


def random_states() -> dict[str, Any]:
    """The states of all generators, in types that weights_only can load."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state())
    return {
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set all generators to saved states; those of GPUs only where their number is the same."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
