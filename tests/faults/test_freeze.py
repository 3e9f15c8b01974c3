"""A file system under the sidecar that is really frozen: fsfreeze on a loop mount.

Takes root, loop devices and the tools; elsewhere it is left out, and `test_chaos` holds the
same promise against a disk that only the sidecar sees standing still.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import chaos
from tests.faults.plant import Plant, Trainer
from tests.faults.test_chaos import acknowledged, emitted
from tests.telemetry.waiting import wait_until

TOOLS = ("fsfreeze", "mkfs.ext4", "mount", "umount")
IMAGE_BYTES = 400 << 20
"""Enough that the sidecar finds min_free_bytes of room in it."""


@pytest.fixture
def mount(place: Path) -> Iterator[Path]:
    """A file system of its own that can be frozen."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"no {', '.join(missing)} here")
    image, point = place / "image", place / "mount"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    tool("mkfs.ext4", "-q", "-F", image)
    if tool("mount", "-o", "loop", image, point, check=False):
        pytest.skip("no loop mount here")
    try:
        yield point
    finally:
        tool("fsfreeze", "--unfreeze", point, check=False)
        tool("umount", "--lazy", point)


def tool(*words: object, check: bool = True) -> int:
    done = subprocess.run([str(word) for word in words], capture_output=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done.returncode


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [12.0, 60.0])
def test_a_frozen_file_system_under_the_sidecar_loses_nothing(
    place: Path, mount: Path, seconds: float
) -> None:
    """Fault 37: for so long no write and no sync comes back, of no process. The service is
    the same one afterwards, and every event is in its journal and its sinks."""
    (mount / "data" / "runs").mkdir(parents=True)
    (place / "spool").mkdir()
    (place / "data").symlink_to(mount / "data")
    with Plant(place, 200.0) as plant:
        plant.start_sidecar()
        trainers = [plant.start_trainer("frozen", source, 0) for source in ("rank0", "rank1")]
        wait_until(lambda: all(acknowledged(trainer) > 50 for trainer in trainers), 60)
        service = plant.sidecar

        tool("fsfreeze", "--freeze", mount)
        try:
            assert service is not None
            # Nothing here may touch the mount: it would wait as well.
            held(trainers, service.is_running, seconds)
        finally:
            tool("fsfreeze", "--unfreeze", mount)
        goal = [emitted(trainer) for trainer in trainers]
        wait_until(
            lambda: all(acknowledged(t) > g for t, g in zip(trainers, goal, strict=True)), 90
        )

        assert plant.sidecar == service, "the service has not lived"
        for trainer in trainers:
            plant.end_trainer(trainer, "finish" if trainer.source == "rank0" else "exit")
        assert all(trainer.popen.wait(60) == 0 for trainer in trainers)
        # A sink that hung for sink_timeout_s was killed, and is started again.
        wait_until(lambda: not chaos.undone(plant), 240)
        assert plant.stop_sidecar(150) == 0
        verdict = chaos.judge(plant, lambda _: None)
    assert verdict.faults == [] and verdict.journaled == verdict.emitted


def held(trainers: list[Trainer], is_alive: Callable[[], bool], seconds: float) -> None:
    """Trainers emit at their own rate for so long, and the service lives."""
    first = [emitted(trainer) for trainer in trainers]
    end_s = time.monotonic() + seconds
    # Half of what they are told: this machine may be busy.
    wait_until(
        lambda: (
            time.monotonic() > end_s
            and all(emitted(t) - f > 100 * seconds for t, f in zip(trainers, first, strict=True))
        ),
        4 * seconds + 60,
    )
    assert is_alive()
