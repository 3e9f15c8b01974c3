"""Pressure, InfiniBand and kills for memory, on trees as kernels lay them out."""

from __future__ import annotations

import pytest

from telemetry.hardware.cgroup import CgroupProbe
from telemetry.hardware.conditions import Conditions
from telemetry.hardware.infiniband import InfinibandProbe
from telemetry.hardware.oom import OomProbe
from telemetry.hardware.pressure import PressureProbe


def pressure(some_us, full_us=None):
    def line(kind, us):
        return f"{kind} avg10=9.00 avg60=9.00 avg300=9.00 total={us}\n"

    return line("some", some_us) + ("" if full_us is None else line("full", full_us))


def test_pressure_is_the_share_of_time_since_the_last_reading(clock, tmp_path):
    """Not the averages of the kernel, and nothing for a resource that is not there."""
    probe = PressureProbe(clock, tmp_path)
    (tmp_path / "cpu").write_text(pressure(0))
    (tmp_path / "memory").write_text(pressure(1_000_000, 500_000))
    assert probe.read() == {}
    clock.advance(2)
    (tmp_path / "cpu").write_text(pressure(200_000))
    (tmp_path / "memory").write_text(pressure(2_000_000, 500_000))

    assert probe.read() == {
        "pressure/cpu_some_ratio": 0.1,
        "pressure/memory_some_ratio": 0.5,
        "pressure/memory_full_ratio": 0.0,
    }


def test_a_kernel_without_pressure_gives_none(clock, tmp_path):
    """It came with Linux 4.20, and can be turned off."""
    assert PressureProbe(clock, tmp_path / "absent").read() == {}


@pytest.fixture
def port(tmp_path):
    """Write counters of port 1 of mlx5_0."""
    directory = tmp_path / "mlx5_0/ports/1/counters"
    directory.mkdir(parents=True)

    def write(**counters):
        for name, count in counters.items():
            (directory / name).write_text(f"{count}\n")

    return write


def test_infiniband_counts_words_of_four_bytes(clock, tmp_path, port):
    """So a gigabyte is a quarter of that in the counter."""
    probe = InfinibandProbe(clock, tmp_path)
    port(port_rcv_data=1000, port_xmit_data=2000, link_downed=1)
    assert probe.read() == {"infiniband/mlx5_0/1/link_downs_total": 1}
    clock.advance(2)
    port(port_rcv_data=1500, port_xmit_data=2000, link_downed=2)

    assert probe.read() == {
        "infiniband/mlx5_0/1/received_bytes_per_second": 1000.0,
        "infiniband/mlx5_0/1/sent_bytes_per_second": 0.0,
        "infiniband/mlx5_0/1/link_downs_total": 2,
    }


def test_a_counter_that_stands_at_its_end_has_no_rate(clock, tmp_path, port):
    """Old cards stop at 32 bits: a rate of 0 would be wrong."""
    probe = InfinibandProbe(clock, tmp_path)
    port(port_rcv_data=2**32 - 1)
    probe.read()
    clock.advance(1)

    assert probe.read() == {}


@pytest.mark.parametrize(
    ("membership", "file", "usage"),
    [
        ("0::/job\n", "job/memory.events", "memory.current"),
        ("4:memory:/job\n", "memory/job/memory.oom_control", "memory.usage_in_bytes"),
    ],
)
def test_a_kill_for_memory_is_counted_and_said(clock, tmp_path, membership, file, usage):
    """Of the machine and of the container; the kills from before the start are no news."""
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "membership").write_text(membership)
    vmstat, group_file = tmp_path / "vmstat", tmp_path / file
    group_file.parent.mkdir(parents=True)
    (group_file.parent / usage).write_text("4096\n")
    said: list = []
    group = CgroupProbe(clock, tmp_path, tmp_path / "membership")
    probe = OomProbe(Conditions("node1", said.append, clock), group.oom_kills, vmstat)
    vmstat.write_text("nr_free_pages 12\noom_kill 7\n")
    group_file.write_text("oom 3\noom_kill 2\n")

    assert probe.read() == {"memory/oom_kills_total": 7, "cgroup/oom_kills_total": 2}
    assert said == []
    vmstat.write_text("nr_free_pages 12\noom_kill 8\n")
    group_file.write_text("oom 4\noom_kill 3\n")
    clock.advance(1)
    probe.read()
    clock.advance(300)
    probe.read()

    assert [(e.name, e.subject, e.is_active) for e in said] == [
        ("oom_kill", "memory", True),
        ("oom_kill", "cgroup", True),
        ("oom_kill", "memory", False),
        ("oom_kill", "cgroup", False),
    ]


def test_without_counters_nothing_is_counted(clock, tmp_path):
    """Kernels before 4.13, and no control groups."""
    group = CgroupProbe(clock, tmp_path, tmp_path / "absent")

    probe = OomProbe(Conditions("", print, clock), group.oom_kills, tmp_path / "absent")

    assert probe.read() == {}
