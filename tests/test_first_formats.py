"""Files of the first version: a run, a spool and a checkpoint that it wrote are read for ever.

`tests/data/first/` was made by version 0.1.0 before any format was extended: a sidecar that
was killed once, three sessions, a spool that nobody took in, and a checkpoint of a model of
one layer. Nothing there is ever written anew.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from shared.events import MetricsLogged, RunFinished
from telemetry.journal.reader import Row
from tests.recorded import rows_of
from tests.telemetry.sidecar_process import SidecarProcess, clean_env
from tests.telemetry.waiting import wait_until

FIRST = Path(__file__).parent / "data" / "first"
ROWS = 21


@pytest.fixture
def run_dir(place: Path) -> Path:
    """A copy of the run, where a sidecar would keep it."""
    return Path(shutil.copytree(FIRST / "run", place / "data" / "runs" / "golden"))


def command(*args: str) -> subprocess.CompletedProcess[str]:
    done = [sys.executable, "-m", *args]
    return subprocess.run(done, env=clean_env(), capture_output=True, text=True, timeout=120)


def losses(rows: list[Row]) -> list[tuple[int | None, object]]:
    events = [row.envelope.event() for row in rows]
    metrics = [event for event in events if isinstance(event, MetricsLogged)]
    return [(e.step, e.values["train/loss"]) for e in metrics if "train/loss" in e.values]


def test_a_run_of_the_first_version_is_read_whole(run_dir: Path) -> None:
    """Every row, in order, with its values, and `inspect` finds nothing wrong."""
    rows = rows_of(run_dir)

    told = command("telemetry", "inspect", str(run_dir))

    first = [(step, 1 / (step + 1)) for step in range(10)]
    second = [(step, 2.0 + step) for step in range(6, 9)]
    assert [row.row for row in rows] == list(range(ROWS))
    assert losses(rows) == first + second
    assert isinstance(rows[-1].envelope.event(), RunFinished)
    assert told.returncode == 0, told.stdout + told.stderr


def test_its_sinks_have_all_of_it_and_write_nothing_twice(run_dir: Path) -> None:
    """The cursors of the first version still say so."""
    before = sorted((run_dir / "wandb").rglob("*.wandb"))
    sizes = [path.stat().st_size for path in before]

    done = [command("telemetry", "sink", name, str(run_dir)) for name in ("tensorboard", "wandb")]

    after = sorted((run_dir / "wandb").rglob("*.wandb"))
    assert [d.returncode for d in done] == [0, 0], [d.stderr for d in done]
    assert after == before and [path.stat().st_size for path in after] == sizes


def test_a_sidecar_goes_on_with_it_and_takes_in_its_spool(run_dir: Path, place: Path) -> None:
    """The events of the spool come behind the rows that were there, once each."""
    spool = place / "spool"
    spool.mkdir()
    for path in FIRST.glob("*.spool"):
        shutil.copy(path, spool)

    with SidecarProcess(place / "data", f"--spool-dir={spool}") as sidecar:
        wait_until(lambda: not list(spool.glob("*.spool")))
        assert sidecar.terminate() == 0

    rows = rows_of(run_dir)
    assert losses(rows)[13:] == [(100 + step, float(step)) for step in range(20)]
    assert [row.row for row in rows] == list(range(len(rows)))


def test_a_checkpoint_of_the_first_version_is_resumed(tmp_path: Path) -> None:
    """Training goes on at its step, to the end that was planned."""
    pytest.importorskip("torch")
    with tarfile.open(FIRST / "checkpoint.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    flags = (
        "--model_size tiny --dataset sample --max_length 16 --batch_size 4 --max_steps 8 "
        "--num_workers 0 --eval_batches 1 --log_interval 1 --eval_interval 4 --quant_interval 4 "
        "--save_interval 4 --no_sidecar "
        f"--output_dir {tmp_path / 'out'} --cache_dir {tmp_path / 'cache'} "
        f"--resume_from {tmp_path / 'step-000004'}"
    )
    options = "layers=1 d_model=8 heads=2 d_ffn=16 max_length=16 group_size=8"

    done = command("trainer", *flags.split(), "--model_option", *options.split())

    assert done.returncode == 0, done.stderr
    assert "8 of 8 steps done" in done.stdout + done.stderr
    assert (tmp_path / "out" / "checkpoints" / "step-000008").is_dir()
