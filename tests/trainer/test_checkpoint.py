"""Checkpoints: whole or absent, and refused where they do not fit."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from shared import files
from trainer.errors import BadInput
from trainer.training import checkpoint as checkpoint_module
from trainer.training.checkpoint import (
    FORMAT,
    CheckpointDirectory,
    check_identity,
    read_checkpoint,
)
from trainer.training.random_states import random_states, restore_random_states


def checkpoint(step: int) -> dict:
    weight = torch.full((3,), float(step))
    optimizer = {"state": {0: {"exp_avg": weight / 2}}, "param_groups": [{"params": [0]}]}
    return {"format": FORMAT, "step": step, "model": {"weight": weight}, "optimizer": optimizer}


def test_what_is_saved_is_read_back(tmp_path: Path):
    """Tensors and plain values survive, in files that cannot run code."""
    directory = CheckpointDirectory(tmp_path)

    path = directory.save(checkpoint(500))

    found = read_checkpoint(path)
    assert path == tmp_path / "checkpoints" / "step-000500"
    assert directory.resolve("latest") == path
    assert torch.equal(found["model"]["weight"], torch.full((3,), 500.0))
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"], torch.full((3,), 250.0))
    assert found["optimizer"]["param_groups"] == [{"params": [0]}]
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_a_checkpoint_takes_the_place_of_one_of_the_same_step(tmp_path: Path):
    """A resumed run comes by the same steps again; nothing is left beside."""
    directory = CheckpointDirectory(tmp_path)
    directory.save(checkpoint(1))

    path = directory.save(checkpoint(1) | {"model": {"weight": torch.zeros(2)}})

    assert read_checkpoint(path)["model"]["weight"].shape == (2,)
    assert names_in(directory) == ["latest", "step-000001"]


def names_in(directory: CheckpointDirectory) -> list[str]:
    return sorted(path.name for path in directory.path.iterdir())


def test_the_names_of_all_directories_above_a_checkpoint_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A synced file whose directory has no durable name is gone after a power cut."""
    synced: set[int] = set()
    fsync = os.fsync
    monkeypatch.setattr(
        files.os, "fsync", lambda fd: (synced.add(os.fstat(fd).st_ino), fsync(fd))[1]
    )

    path = CheckpointDirectory(tmp_path / "runs" / "out").save(checkpoint(1))

    above = [tmp_path, tmp_path / "runs", tmp_path / "runs" / "out", path.parent, path]
    assert [place for place in above if place.stat().st_ino not in synced] == []


@pytest.mark.parametrize("call", ["fsync", "save_file", "rename"])
def test_a_crash_while_writing_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    """Whatever fails before the rename, `latest` names a whole one and no half one is there."""
    directory = CheckpointDirectory(tmp_path)
    directory.save(checkpoint(1))

    def crash(*args: object) -> None:
        raise OSError(28, "No space left on device")

    def crash_at_safetensors(*args: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    patches = {
        "fsync": (files.os, "fsync", crash),
        "save_file": (checkpoint_module, "save_file", crash_at_safetensors),
        "rename": (Path, "rename", crash),
    }
    with monkeypatch.context() as patched:
        patched.setattr(*patches[call])
        with pytest.raises(OSError, match="No space"):
            directory.save(checkpoint(2))

    assert read_checkpoint(directory.resolve("latest"))["step"] == 1
    assert names_in(directory) == ["latest", "step-000001"]


def test_a_crash_between_two_renames_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The one that was moved aside for its successor returns if that cannot take its place."""
    directory = CheckpointDirectory(tmp_path)
    directory.save(checkpoint(1))
    rename = Path.rename

    def crash_at_new(path: Path, target: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", crash_at_new)
    with pytest.raises(OSError, match="Input/output"):
        directory.save(checkpoint(1))

    assert read_checkpoint(directory.resolve("latest"))["step"] == 1
    assert names_in(directory) == ["latest", "step-000001"]


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


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", "cut"], ids=str)
def test_an_unreadable_checkpoint_is_refused_by_name(tmp_path: Path, file: str, content):
    """Any of its files missing, empty, foreign or cut: one sentence with a way out."""
    path = CheckpointDirectory(tmp_path).save(checkpoint(1))
    if content is None:
        (path / file).unlink()
    else:
        whole = (path / file).read_bytes()
        (path / file).write_bytes(whole[:-9] if content == "cut" else content)

    with pytest.raises(BadInput, match=r"step-000001.*name another one") as refusal:
        read_checkpoint(path)

    assert "\n" not in str(refusal.value)


def test_an_averaged_teacher_is_kept_where_there_is_one(tmp_path: Path):
    """In a file of its own, refused by name if it is damaged; without one there is none."""
    directory = CheckpointDirectory(tmp_path)
    alone = directory.save(checkpoint(1))
    with_teacher = directory.save(checkpoint(2) | {"teacher": {"encoder.weight": torch.ones(2)}})

    found = read_checkpoint(with_teacher)["teacher"]

    assert torch.equal(found["encoder.weight"], torch.ones(2))
    assert read_checkpoint(alone)["teacher"] == {}
    (with_teacher / "teacher.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match=r"step-000002 cannot be read"):
        read_checkpoint(with_teacher)


def test_what_is_no_checkpoint_at_all_is_refused(tmp_path: Path):
    """A path to nothing, or to a file."""
    (tmp_path / "file").touch()

    for name in ("nothing", "file"):
        with pytest.raises(BadInput, match=f"{name} cannot be read"):
            read_checkpoint(tmp_path / name)


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path):
    """It may mean by a value what this version does not know; the sentence says both formats."""
    path = CheckpointDirectory(tmp_path).save(checkpoint(1) | {"format": FORMAT + 1})

    with pytest.raises(BadInput, match=rf"newer version .*format {FORMAT + 1}.*reads {FORMAT}"):
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

    assert names_in(directory) == ["latest", "step-1000000", "step-999999"]


def test_a_checkpoint_of_another_model_or_text_is_refused():
    """The sentence names what differs."""
    saved = {"identity": {"seed": 1, "layers": 4}}

    check_identity(saved, {"seed": 1, "layers": 4})
    with pytest.raises(BadInput, match="layers 4, this run has 8"):
        check_identity(saved, {"seed": 1, "layers": 8})


def test_random_states_come_back_through_a_file():
    """All three generators go on with the same numbers."""
    random.gauss(0, 1)
    text = json.dumps(random_states())
    expected = (random.random(), np.random.rand(), torch.rand(1).item())

    restore_random_states(json.loads(text))

    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
