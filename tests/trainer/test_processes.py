"""Several processes of one run: real ones, that talk over gloo on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from trainer.__main__ import main
from trainer.data.batches import TrainingBatches, evaluation_batches
from trainer.data.masking import Masking
from trainer.errors import BadInput
from trainer.training.checkpoint import read_checkpoint
from trainer.training.processes import Place, is_peer_failure, read_place

FLOAT = ["--model_option", "weight_mode=float", "activation_mode=float", "layers=1"]
FEW = ["--eval_interval", "100", "--quant_interval", "0", "--model_option", "layers=1"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def two_processes(arguments: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Both ranks of a run, as torchrun would start them."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        ranks = []
        for rank in ("0", "1"):
            environ = os.environ | place | {"RANK": rank, "LOCAL_RANK": rank}
            child = subprocess.Popen(
                [sys.executable, "-m", "trainer", *arguments],
                stderr=subprocess.PIPE,
                text=True,
                env=environ | {"OMP_NUM_THREADS": "1"},
                cwd=Path(__file__).parents[2],
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            ranks.append(child)
        yield ranks


def run_two(arguments: list[str]) -> str:
    """Both to their end; what the first said."""
    with two_processes(arguments) as (first, second):
        said = first.communicate(timeout=100)[1]
        told = second.communicate(timeout=100)[1]
    assert (first.returncode, second.returncode) == (0, 0), said + told
    # Where events wait, each emitter says of its own.
    others = [line for line in told.splitlines() if "are not with the sidecar yet" not in line]
    assert others == [], "only the first process speaks"
    return said


def losses(text: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"step \d+/\d+: loss ([\d.]+)", text)]


def last(output_dir: Path) -> Path:
    checkpoints = output_dir / "checkpoints"
    return checkpoints / (checkpoints / "latest").read_text().strip()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_do_what_one_does_with_the_same_global_batch(
    small_run, recorder, tmp_path, capsys, accumulation
):
    """Same rows, same masks, every token counts the same: the losses and the weights agree.

    A teacher's share of the gradient, too, which is as large as the labels' here.
    """
    both, alone, teacher = tmp_path / "both", tmp_path / "alone", tmp_path / "teacher"
    main([*small_run, *FLOAT, "--seed", "1", "--output_dir", str(teacher)])
    run = [*small_run, *FLOAT, "--teacher", str(last(teacher)), "--teacher_weight", "2"]
    capsys.readouterr()

    each, all_of_them = (["--gradient_accumulation_steps", str(accumulation * n)] for n in (1, 2))
    said = run_two([*run, *each, "--output_dir", str(both)])
    main([*run, *all_of_them, "--output_dir", str(alone)])

    expected = losses(capsys.readouterr().err)
    assert len(expected) == 4
    assert losses(said) == pytest.approx(expected, abs=2e-4)
    ours, theirs = read_checkpoint(last(both)), read_checkpoint(last(alone))
    assert ours["best_val_loss"] == pytest.approx(theirs["best_val_loss"], abs=1e-4)
    assert ours["position"] == theirs["position"]
    for name, weight in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], weight, rtol=1e-3, atol=1e-4)


def test_two_processes_are_one_run_and_resume_exactly(small_run, tmp_path):
    """One run id, one set of records with a stream a rank; the same end after a resume."""
    output_dir = tmp_path / "out"
    run = [*small_run, *FEW, "--save_interval", "2", "--disable_wandb", "--teacher", "ema"]
    run.remove("--no_sidecar")

    run_two(run)
    whole = read_checkpoint(last(output_dir))
    [run_dir] = (output_dir / "telemetry" / "runs").iterdir()
    inspected = subprocess.run(
        [sys.executable, "-m", "telemetry", "inspect", str(run_dir)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    resumed_from = str(output_dir / "checkpoints" / "step-000002")
    run_two([*run, "--resume_from", resumed_from, "--no_sidecar"])
    resumed = read_checkpoint(last(output_dir))

    assert run_dir.name == whole["run_id"] == resumed["run_id"]
    assert json.loads((run_dir / "run.json").read_text())["status"] == "finished"
    sources = re.findall(r"^ (rank\d) +(\w+)", inspected.stdout, re.MULTILINE)
    assert {("rank0", "val"), ("rank0", "train"), ("rank1", "train")} <= set(sources), inspected
    assert ("rank1", "val") not in sources
    assert len(whole["random"]) == 2
    assert whole["random"][0]["torch"] != whole["random"][1]["torch"]
    assert resumed["step"] == whole["step"] == 4
    for part in ("model", "teacher"):
        for name, weight in whole[part].items():
            assert torch.equal(resumed[part][name], weight), name


def wait_for_step(child: subprocess.Popen[str]) -> str:
    """Read until the first logged step."""
    said = ""
    assert child.stderr is not None
    for line in child.stderr:
        said += line
        if line.startswith("step "):
            return said
    raise AssertionError(said)


def test_a_rank_that_dies_ends_the_run_as_failed(small_run, tmp_path):
    """Even though torchrun tells the others to end by SIGTERM: nobody asked for that."""
    run = [*small_run, *FEW, "--max_steps", "100000", "--disable_wandb"]
    run.remove("--no_sidecar")
    with two_processes(run) as (first, second):
        wait_for_step(first)

        second.kill()
        first.send_signal(signal.SIGTERM)
        said = first.communicate(timeout=60)[1]

    assert first.returncode == 1
    assert "Training stopped: another process of this run has ended" in said
    assert "Traceback" not in said
    [run_dir] = (tmp_path / "out" / "telemetry" / "runs").iterdir()
    assert json.loads((run_dir / "run.json").read_text())["status"] == "failed"


def test_a_stop_of_one_rank_is_one_of_all_at_the_same_step(small_run, tmp_path):
    """With a checkpoint, and the exit code of the signal in both."""
    with two_processes([*small_run, *FEW, "--max_steps", "100000"]) as (first, second):
        wait_for_step(first)

        second.send_signal(signal.SIGTERM)
        said = first.communicate(timeout=60)[1]
        second.communicate(timeout=60)

    assert (first.returncode, second.returncode) == (143, 143)
    assert "Go on with the same arguments and --resume_from latest." in said
    assert read_checkpoint(last(tmp_path / "out"))["step"] > 0


def test_processes_take_neighbouring_batches_and_know_each_others_counts():
    """The batches of two ranks are those of one process in turn; no row twice, none left out."""
    rows = torch.randint(5, 50, (12, 8), dtype=torch.int32)
    masking = Masking.of(50, range(5), 4, 0, 0.3)
    alone = TrainingBatches(rows, 3, masking, seed=1)
    ranks = [TrainingBatches(rows, 3, masking, 1, rank, 2) for rank in (0, 1)]

    pair = [batches[6] for batches in ranks]

    for batch, position in zip(pair, (6, 9), strict=True):
        assert torch.equal(batch.input_ids, alone[position].input_ids)
        together = len(batch.predicted) + batch.predicted_elsewhere
        assert together == sum(len(one.predicted) for one in pair)
        assert batch.tokens + batch.tokens_elsewhere == 2 * 3 * 8


def test_processes_share_an_evaluation():
    """Each takes its part of the same batches, up to the limit."""
    rows = torch.randint(5, 50, (20, 8), dtype=torch.int32)
    masking = Masking.of(50, range(5), 4, 0, 0.3)
    whole = list(evaluation_batches(rows, 3, masking, limit=5))

    parts = [list(evaluation_batches(rows, 3, masking, 5, rank, 2)) for rank in (0, 1)]

    assert [len(part) for part in parts] == [3, 2]
    for number, batch in enumerate(whole):
        found = parts[number % 2][number // 2]
        assert torch.equal(found.input_ids, batch.input_ids)


def test_the_place_is_what_torchrun_says():
    """One process needs no place; of several each has to know its own."""
    alone = read_place({"WORLD_SIZE": "1", "RANK": "0"})
    third = read_place({"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"})

    assert read_place({}) == alone == Place()
    assert third == Place(rank=2, world_size=4, local_rank=0, node=1)
    for half in ({"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "x", "LOCAL_RANK": "0"}):
        with pytest.raises(BadInput, match="torchrun"):
            read_place(half)


def test_only_failures_of_the_connection_blame_a_peer():
    """An error of this process keeps its own name."""
    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection")

    assert is_peer_failure(gloo)
    assert is_peer_failure(torch.distributed.DistBackendError("NCCL"))
    assert not is_peer_failure(RuntimeError("shapes differ"))
    assert not is_peer_failure(ValueError("gloo"))
