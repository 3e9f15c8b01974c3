"""The real sampler over a driver of ours: what hangs costs its own values alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shared.events import AlertChanged, MetricsLogged
from telemetry.hardware.metric_list import ALL
from telemetry.hardware.proc import TICKS_PER_SECOND, boot_time_s, stat_of
from telemetry.hardware.watched import Watched, order_of
from tests.fakes import FakeSidecar

RUN_ID = "host-node1"


@pytest.fixture
def sidecar(place):
    with FakeSidecar(f"ipc://{place}/s.sock") as found:
        yield found


@pytest.fixture
def start(place, machine, tmp_path):
    """Start samplers; they end with the test."""
    started = []

    def started_sampler(**scenario):
        machine.play(**scenario)
        command = [
            *(sys.executable, "-m", "telemetry.hardware.sampler", "--close-timeout-s", "0"),
            *("--endpoint", f"ipc://{place}/s.sock", "--host", "node1", "--hz", "10"),
        ]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=machine.environ())
        started.append(process)
        return process

    yield started_sampler
    for process in started:
        process.kill()
        process.communicate()


def events_of(sidecar, kind):
    keys = [key for key in sidecar.disk.events if key[0] == RUN_ID]
    found = [event for key in keys for event in sidecar.disk.typed(key)]
    return [event for event in found if isinstance(event, kind)]


def newest(sidecar):
    samples = events_of(sidecar, MetricsLogged)
    return samples[-1].values if samples else {}


def test_the_sampler_records_eight_gpus_and_times_its_probes(sidecar, start):
    """From the library to the wire."""
    start(gpus=8, gpm=1)

    sidecar.wait_for(lambda: "gpu/7/nvlink_rx_bytes_per_second" in newest(sidecar), 60)

    values = newest(sidecar)
    assert values["gpu/7/power_watts"] == 300.0
    times = {name for name in values if name.startswith("sampler/probe/")}
    assert {"sampler/probe/cpu_seconds", "sampler/probe/nvml_seconds"} <= times
    assert all(0 <= values[name] < 60 for name in times)
    assert [name for name in values if len(ALL.described(name)) != 1] == []


def test_a_call_into_the_driver_that_hangs_is_named_and_the_rest_goes_on(sidecar, start, machine):
    """The CPU is sampled all the time; when the call returns, so do the GPUs."""
    start(gpus=2)
    sidecar.wait_for(lambda: "gpu/1/power_watts" in newest(sidecar), 60)

    machine.play(hang__nvmlDeviceGetPowerUsage=1)
    sidecar.wait_for(lambda: events_of(sidecar, AlertChanged), 60)

    (alert,) = events_of(sidecar, AlertChanged)
    assert (alert.name, alert.subject, alert.is_active) == ("probe_hangs", "probe/nvml", True)
    assert "gpu/0/uuid" not in newest(sidecar)
    assert "cpu_percent" in newest(sidecar)
    machine.play(hang__nvmlDeviceGetPowerUsage=None)
    sidecar.wait_for(lambda: "gpu/1/power_watts" in newest(sidecar), 60)
    sidecar.wait_for(lambda: len(events_of(sidecar, AlertChanged)) == 2, 60)
    assert not events_of(sidecar, AlertChanged)[1].is_active


def test_the_processes_that_the_sidecar_names_are_sampled(sidecar, start):
    """This very test, by its pid and its start; and no process of another start."""
    process = start()
    stat = stat_of("/proc", os.getpid())
    boot_s = boot_time_s("/proc")
    assert stat is not None and boot_s is not None
    start_ns = round((boot_s + stat.start_ticks / TICKS_PER_SECOND) * 1e9)
    mine = Watched("r1", "rank0", os.getpid(), start_ns)
    other = Watched("r2", "rank0", os.getpid(), start_ns - 60 * 10**9)
    assert process.stdin is not None

    process.stdin.write(b"nonsense\n" + order_of([mine, other]))
    process.stdin.flush()
    sidecar.wait_for(lambda: "process/r1/rank0/cpu_cores" in newest(sidecar), 60)

    values = newest(sidecar)
    assert values["process/r1/rank0/rss_bytes"] > 1 << 20
    assert values["process/r1/rank0/threads"] >= 1
    assert values["process/r1/rank0/processes"] >= 2  # the sampler is a child of this test
    assert not any(name.startswith("process/r2") for name in values)
