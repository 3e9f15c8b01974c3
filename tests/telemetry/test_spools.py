"""Spools of trainers that are gone, taken in by the sidecar itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from shared.emitter import Emitter
from shared.events import MetricsLogged, RunStarted
from shared.ids import StreamId
from telemetry.journal.reader import JournalReader
from telemetry.journal.writer import JournalWriter
from telemetry.run_dir import RunDir
from telemetry.supervise.tombstones import write_tombstone
from tests.telemetry.sidecar_process import SidecarProcess, clean_env
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import metric, packed

ABANDONED = """
import os, sys
from pathlib import Path
from shared.emitter import Emitter
from shared.events import MetricsLogged, RunStarted

emitter = Emitter(sys.argv[1], run_id="gone", source="rank0", spool_dir=Path(sys.argv[2]))
emitter.emit(RunStarted(project="p", name="gone"))
for step in range(500):
    emitter.emit(MetricsLogged(kind="train", step=step, values={"train/loss": 1.0 / (step + 1)}))
while emitter.stats().spooled < 501:
    pass
os._exit(0)
"""


def steps_of(run_dir: Path) -> list[int | None]:
    steps: list[int | None] = []
    with JournalReader(run_dir / "journal") as reader:
        while not (batch := reader.read()).is_end or batch.rows:
            events = [row.envelope.event() for row in batch.rows]
            steps += [event.step for event in events if isinstance(event, MetricsLogged)]
    return steps


def test_what_a_trainer_left_in_its_spool_is_taken_in_without_another_trainer(
    place: Path,
) -> None:
    """Row 22 of the fault catalogue: trained without a sidecar, gone by os._exit; a
    sidecar that knows the spool journals all of it and removes the file."""
    spool_dir, data_dir = place / "spool", place / "data"
    command = [sys.executable, "-c", ABANDONED, f"ipc://{place}/nobody", str(spool_dir)]
    subprocess.run(command, check=True, env=clean_env(), timeout=60)
    assert len(list(spool_dir.glob("*.spool"))) == 1, "nothing was left: this proves nothing"

    with SidecarProcess(data_dir, f"--spool-dir={spool_dir}") as sidecar:
        wait_until(lambda: not list(spool_dir.glob("*.spool")))
        assert sidecar.terminate() == 0

    assert steps_of(data_dir / "runs" / "gone") == list(range(500))
    assert RunDir(data_dir / "runs" / "gone").run_file.exists()


def test_the_spool_of_a_living_trainer_is_left_alone(place: Path) -> None:
    """Its lock says that somebody will send it."""
    spool_dir, data_dir = place / "spool", place / "data"
    with Emitter(
        f"ipc://{place}/nobody", run_id="here", source="rank0", spool_dir=spool_dir,
        close_timeout_s=0.2,
    ) as emitter:  # fmt: skip
        emitter.emit(RunStarted(project="p", name="here"))
        wait_until(lambda: emitter.stats().spooled == 1)

        with SidecarProcess(data_dir, f"--spool-dir={spool_dir}") as sidecar:
            assert sidecar.terminate() == 0

        assert len(list(spool_dir.glob("*.spool"))) == 1
        assert not (data_dir / "runs" / "here").exists()


def test_a_former_session_is_taken_in_while_its_successor_is_live(place: Path) -> None:
    """A trainer died without a sidecar and was started again: neither session waits for
    the other, and both are whole in the journal."""
    spool_dir, data_dir = place / "spool", place / "data"
    command = [sys.executable, "-c", ABANDONED, f"ipc://{place}/nobody", str(spool_dir)]
    subprocess.run(command, check=True, env=clean_env(), timeout=60)

    with (
        SidecarProcess(data_dir) as first,
        Emitter(first.endpoint, run_id="gone", source="rank0") as successor,
    ):
        successor.emit(MetricsLogged(kind="train", step=1000, values={"x": 1}))
        wait_until(lambda: successor.stats().acknowledged == 1)
        assert first.terminate() == 0
        with SidecarProcess(data_dir, f"--spool-dir={spool_dir}") as sidecar:
            successor.emit(MetricsLogged(kind="train", step=1001, values={"x": 1}))
            wait_until(lambda: not list(spool_dir.glob("*.spool")))
            wait_until(lambda: successor.stats().acknowledged == 2)
            successor.close()
            assert sidecar.terminate() == 0

    assert sorted(steps_of(data_dir / "runs" / "gone")) == [*range(500), 1000, 1001]


def test_a_spool_that_is_refused_stays_and_keeps_no_other_from_coming_in(place: Path) -> None:
    """Its run was removed to make room. Row 46 of the fault catalogue."""
    spool_dir, data_dir = place / "spool", place / "data"
    with JournalWriter(data_dir / "runs" / "gone" / "journal") as writer:
        writer.append(StreamId("gone", "s", "rank0"), 0, 1, packed(metric(0)))
        writer.sync()
    write_tombstone(data_dir / "runs", "gone", "to make room")
    shutil.rmtree(data_dir / "runs" / "gone")
    command = [sys.executable, "-c", ABANDONED, f"ipc://{place}/nobody", str(spool_dir)]
    subprocess.run(command, check=True, env=clean_env(), timeout=60)

    with SidecarProcess(data_dir, f"--spool-dir={spool_dir}") as sidecar:
        wait_until(lambda: "was removed" in sidecar.log)
        other = ABANDONED.replace('"gone"', '"other"')
        subprocess.run([sys.executable, "-c", other, *command[3:]], check=True, timeout=60)
        wait_until(lambda: len(list(spool_dir.glob("*.spool"))) == 1)
        assert sidecar.terminate() == 0

    assert steps_of(data_dir / "runs" / "other") == list(range(500))
    assert not (data_dir / "runs" / "gone").exists() and sidecar.log.count("stays") == 1
