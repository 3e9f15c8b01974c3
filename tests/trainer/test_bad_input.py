"""What cannot be done is said in one sentence, with exit code 2 and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.__main__ import main

BAD = {
    "--nonsense": "--nonsense",
    "--batch_size 0": "--batch_size",
    "--model_size tiny --max_length 129": "--max_length 129",
    "--model_option layers=0": "layers",
    "--model_option heads=3": "heads",
    "--model_option nonsense=1": "nonsense",
    "--model_option weight_mode": "weight_mode",
    "--max_steps 10 --warmup_steps 10": "--warmup_steps 10",
    "--fp16 --device cpu": "--fp16",
    "--fp16 --bf16": "--bf16",
    "--teacher /nowhere/at/all": "--teacher: checkpoint /nowhere/at/all",
    "--teacher ema --teacher_temperature 0": "--teacher_temperature",
    "--teacher_weight 0.1": "--teacher_weight",
    "--device toaster": "--device toaster",
    "--device meta": "--device meta",
    "--run_id a/b": "--run_id",
    "--resume_from /nowhere/at/all.pt": "/nowhere/at/all.pt",
    "--resume_from latest": "--resume_from latest",
    "--telemetry_endpoint nowhere": "--telemetry_endpoint",
    "--dataset wikitext-2-v1": "--dataset sample",
    "--tokenizer no/such-tokenizer": "--tokenizer shipped",
    "--tokenizer bert-base-uncased": "--tokenizer shipped",
    "--change_schedule": "--change_schedule does nothing without --resume_from",
    "--output_dir /proc/nowhere": "/proc/nowhere",
    "--output_dir /dev/null/below": "/dev/null/below",
}


def errors_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(("arguments", "named"), BAD.items(), ids=list(BAD))
def test_bad_input_is_one_sentence_that_names_it(arguments, named, small_run, recorder, capsys):
    """Nothing is recorded of a run that never began."""
    code = main([*small_run, *arguments.split()])

    output = capsys.readouterr()
    [line] = errors_of(output.err)
    assert code == 2
    assert named in line
    assert output.err.rstrip().endswith(line)
    assert "Traceback" not in output.err
    assert recorder.events == []


def test_an_output_directory_that_is_a_file_is_refused(small_run, tmp_path, capsys):
    """Before any text is tokenized."""
    path = tmp_path / "file"
    path.touch()

    code = main([*small_run, "--output_dir", str(path)])

    assert code == 2
    assert str(path) in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_refused(small_run, recorder, tmp_path, capsys):
    """Other seed, other rows, other run id: each is named."""
    main(small_run)
    resumed = [*small_run, "--resume_from", "latest"]
    capsys.readouterr()

    for change, named in (
        ("--seed 1", "seed 42"),
        ("--max_length 32", "row length 16"),
        ("--run_id another", "--run_id another"),
        ("--model_option layers=2", "layers 4"),
    ):
        assert main([*resumed, *change.split()]) == 2
        assert named in capsys.readouterr().err


def test_several_processes_without_their_places_are_refused(small_run, monkeypatch, capsys):
    """Each would train the same model alone; the sentence names torchrun."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)

    code = main(small_run)

    assert code == 2
    [line] = errors_of(capsys.readouterr().err)
    assert "WORLD_SIZE is 2" in line
    assert "torchrun" in line


def test_the_command_itself_ends_with_code_2_and_one_line():
    """As a shell sees it; answered before torch is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "--model_size", "giant"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ,
        timeout=60,
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "giant" in done.stderr


def test_a_gpu_that_is_not_there_is_refused(small_run, monkeypatch, capsys):
    """The sentence says how many there are."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    code = main([*small_run, "--device", "cuda:3"])

    assert code == 2
    assert "finds 1 GPUs" in capsys.readouterr().err
