"""The parquet sink under a real sidecar: its process killed, frozen, and stopped with the rest."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from pathlib import Path

import psutil

from shared.emitter import Emitter
from shared.events import MetricsLogged, RunFinished, RunStarted
from telemetry.run_dir import CursorFile, RunDir, load
from tests.telemetry.sidecar_process import SidecarProcess
from tests.telemetry.sinks.helpers_parquet import files, read
from tests.telemetry.waiting import wait_until

FLAGS = ("--sinks=parquet", "--drain-grace-s=30")


def sink_of(sidecar: SidecarProcess) -> psutil.Process | None:
    for child in sidecar.service.children(recursive=True):
        # One that was killed is a zombie for a moment.
        with contextlib.suppress(psutil.Error):
            if {"sink", "parquet"} <= set(child.cmdline()):
                return child
    return None


def emit(emitter: Emitter, steps: range) -> None:
    for step in steps:
        values = {"train/loss": float(step), "train/tokens": step}
        emitter.emit(MetricsLogged(kind="train", step=step, values=values))


def train_losses(run_dir: Path) -> list[tuple[int, float]]:
    return read(run_dir, "step, value", "name = 'train/loss'")


def test_a_live_run_is_in_parquet_once_after_kills_of_the_sink_and_the_sidecar(
    place: Path,
) -> None:
    """With rows in memory, in no file yet; and a drain writes what is left. Exit code 0."""
    run_dir = place / "d" / "runs" / "r"
    with SidecarProcess(place / "d", *FLAGS) as sidecar:
        emitter = Emitter(sidecar.endpoint, run_id="r", spool_dir=place / "s")
        emitter.emit(RunStarted(project="p", name="n"))
        emit(emitter, range(100))
        sink = wait_until(lambda: sink_of(sidecar))
        wait_until(RunDir(run_dir).lock("parquet").exists)
        sink.kill()
        again = wait_until(lambda: _other_sink(sidecar, sink.pid))
        emit(emitter, range(100, 200))
        # Frozen, it delays nobody: the sidecar goes on taking events.
        again.send_signal(signal.SIGSTOP)
        emit(emitter, range(200, 300))
        wait_until(lambda: emitter.stats().queued == 0)
        sidecar.kill()
        again.kill()
        sidecar.start()
        emit(emitter, range(300, 400))
        emitter.emit(RunFinished(status="finished"))
        assert emitter.close(60)
        assert sidecar.terminate() == 0, sidecar.log

    cursor = load(RunDir(run_dir).cursor("parquet"), CursorFile)
    assert cursor is not None and cursor.done and len(files(run_dir)) >= 1
    counts = Counter(train_losses(run_dir))
    assert counts == Counter((step, float(step)) for step in range(400))


def test_a_sidecar_that_stops_leaves_a_running_run_in_parquet_as_far_as_it_came(
    place: Path,
) -> None:
    """Not five minutes behind, for a start that may never come."""
    run_dir = place / "d" / "runs" / "r"
    with SidecarProcess(place / "d", "--sinks=parquet", "--drain-grace-s=6") as sidecar:
        emitter = Emitter(sidecar.endpoint, run_id="r", spool_dir=place / "s")
        emitter.emit(RunStarted(project="p", name="n"))
        emit(emitter, range(50))
        wait_until(lambda: sink_of(sidecar))
        wait_until(lambda: emitter.stats().queued == 0)
        assert files(run_dir) == []

        sidecar.terminate()

    assert [step for step, _ in train_losses(run_dir)] == list(range(50))
    emitter.close()


def _other_sink(sidecar: SidecarProcess, pid: int) -> psutil.Process | None:
    sink = sink_of(sidecar)
    return None if sink is None or sink.pid == pid else sink
