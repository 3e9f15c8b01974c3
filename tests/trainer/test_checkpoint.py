"""Checkpoints: whole or absent, and refused where they do not fit."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import files
from trainer.checkpoint import (
    FORMAT,
    CheckpointDirectory,
    check_identity,
    random_states,
    read_checkpoint,
    restore_random_states,
)
from trainer.errors import BadInput


def checkpoint(step: int) -> dict:
    return {"format": FORMAT, "step": step, "model": {"weight": torch.full((3,), float(step))}}


def test_what_is_saved_is_read_back(tmp_path: Path):
    """Tensors and plain values survive, loaded without running code."""
    directory = CheckpointDirectory(tmp_path)

    path = directory.save(checkpoint(500))

    assert path == tmp_path / "checkpoints" / "step-000500.pt"
    assert directory.resolve("latest") == path
    assert torch.equal(read_checkpoint(path)["model"]["weight"], torch.full((3,), 500.0))


@pytest.mark.parametrize("call", ["fsync", "save"])
def test_a_crash_while_writing_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    """Whatever fails before the rename, `latest` names a whole file and no half one is there."""
    directory = CheckpointDirectory(tmp_path)
    directory.save(checkpoint(1))

    def crash(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((files.os, "fsync") if call == "fsync" else (torch, "save")), crash)
    with pytest.raises(OSError, match="No space"):
        directory.save(checkpoint(2))

    assert read_checkpoint(directory.resolve("latest"))["step"] == 1
    assert sorted(p.name for p in directory.path.iterdir()) == ["latest", "step-000001.pt"]


def test_a_crash_before_the_pointer_moves_leaves_the_old_pointer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The new checkpoint may be there already; `latest` still names one that is whole."""
    directory = CheckpointDirectory(tmp_path)
    directory.save(checkpoint(1))
    replace = Path.replace

    def crash_at_pointer(path: Path, target: Path) -> Path:
        if target.name == "latest":
            raise OSError(5, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", crash_at_pointer)
    with pytest.raises(OSError, match="Input/output"):
        directory.save(checkpoint(2))

    assert read_checkpoint(directory.resolve("latest"))["step"] == 1


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 half a checkpoint", "foreign", "cut"])
def test_an_unreadable_checkpoint_is_refused_by_name(tmp_path: Path, content):
    """Missing, empty, damaged, cut or another program's: one sentence with a way out."""
    path = tmp_path / "step-000001.pt"
    if content == "foreign":
        torch.save({"weights": torch.zeros(1)}, path)
    elif content == "cut":
        torch.save(checkpoint(1), path)
        path.write_bytes(path.read_bytes()[:-200])
    elif content is not None:
        path.write_bytes(content)

    with pytest.raises(BadInput, match=r"step-000001\.pt.*--resume_from"):
        read_checkpoint(path)


def test_latest_of_a_directory_without_checkpoints_is_refused(tmp_path: Path):
    """The sentence says where there is none."""
    with pytest.raises(BadInput, match="holds no checkpoint"):
        CheckpointDirectory(tmp_path).resolve("latest")


def test_only_the_newest_are_kept_when_asked(tmp_path: Path):
    """By step number, also past a million."""
    directory = CheckpointDirectory(tmp_path, keep=2)

    for step in (999_998, 999_999, 1_000_000):
        directory.save(checkpoint(step))

    names = sorted(path.name for path in directory.path.glob("*.pt"))
    assert names == ["step-1000000.pt", "step-999999.pt"]


def test_a_checkpoint_of_another_model_or_text_is_refused():
    """The sentence names what differs."""
    saved = {"identity": {"seed": 1, "layers": 4}}

    check_identity(saved, {"seed": 1, "layers": 4})
    with pytest.raises(BadInput, match="layers 4, this run has 8"):
        check_identity(saved, {"seed": 1, "layers": 8})


def test_random_states_come_back_through_a_file(tmp_path: Path):
    """All three generators go on with the same numbers."""
    path = tmp_path / "states.pt"
    random.gauss(0, 1)
    torch.save(random_states(), path)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())

    restore_random_states(torch.load(path, weights_only=True))

    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
