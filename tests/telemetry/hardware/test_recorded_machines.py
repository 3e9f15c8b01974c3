"""The probes on recorded machines: control groups, pressure, InfiniBand, disks and networks."""

from __future__ import annotations

import psutil
import pytest

from telemetry.hardware import metric_list
from telemetry.hardware.cgroup import CgroupProbe
from telemetry.hardware.conditions import Conditions
from telemetry.hardware.host import host_probes
from telemetry.hardware.infiniband import InfinibandProbe
from telemetry.hardware.oom import OomProbe
from telemetry.hardware.pressure import PressureProbe
from tests.telemetry.hardware.recorded_machine import RecordedMachine

GIB = 1 << 30
MACHINES = ("hybrid", "v2_container", "v2_slurm", "v2_desktop", "v1_kubernetes")


@pytest.fixture
def recorded(tmp_path):
    return lambda name: RecordedMachine(name, tmp_path / name)


def test_a_container_of_version_2_has_its_limits_usage_and_throttled_time(recorded, clock):
    """Its own group is the mount, as it has a namespace."""
    machine = recorded("v2_container")
    probe = CgroupProbe(clock, *machine.cgroups)

    first = probe.read()
    clock.advance(2)
    machine.change("sys/fs/cgroup/cpu.stat", "usage_usec 512000000", "usage_usec 526000000")
    machine.change("sys/fs/cgroup/cpu.stat", "throttled_usec 64000000", "throttled_usec 65000000")

    assert first == {
        "cgroup/memory_limit_bytes": 32 * GIB,
        "cgroup/memory_used_bytes": 14 * GIB,
        "cgroup/cpu_limit_cores": 8.0,
    }
    assert probe.read() == first | {
        "cgroup/cpu_used_cores": 7.0,
        "cgroup/cpu_throttled_seconds_per_second": 0.5,
    }


def test_the_limit_of_a_job_of_slurm_counts_for_its_task(recorded, clock):
    """The task has no limit; what the job uses is what is held to it."""
    machine = recorded("v2_slurm")
    probe = CgroupProbe(clock, *machine.cgroups)

    first = probe.read()
    clock.advance(1)
    job = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_4711"
    machine.change(f"{job}/cpu.stat", "usage_usec 6400000000", "usage_usec 6412000000")

    assert first == {
        "cgroup/memory_limit_bytes": 64 * GIB,
        "cgroup/memory_used_bytes": 42 * GIB,
        "cgroup/cpu_limit_cores": 16.0,
    }
    assert probe.read()["cgroup/cpu_used_cores"] == pytest.approx(12.0)


def test_without_a_limit_the_usage_of_our_own_group_is_shown(recorded, clock):
    """On a desktop nothing is limited; the scope of the shell still counts what it uses."""
    machine = recorded("v2_desktop")
    probe = CgroupProbe(clock, *machine.cgroups)

    first = probe.read()
    clock.advance(1)
    scope = "user.slice/user-1000.slice/user@1000.service/app.slice/app-terminal-811.scope"
    stat = f"sys/fs/cgroup/{scope}/cpu.stat"
    machine.change(stat, "usage_usec 100000000", "usage_usec 101500000")

    assert first == {"cgroup/memory_used_bytes": 2 * GIB + GIB // 2}
    # A user's groups have no quota, and so no time in which they were held back.
    assert probe.read() == first | {"cgroup/cpu_used_cores": 1.5}


def test_a_container_of_version_1_with_the_path_of_its_host(recorded, clock):
    """The path is not there: the mounts are the container's own groups."""
    machine = recorded("v1_kubernetes")
    probe = CgroupProbe(clock, *machine.cgroups)

    first = probe.read()
    clock.advance(1)
    place = "sys/fs/cgroup/cpu,cpuacct"
    machine.write(f"{place}/cpuacct.usage", f"{812345678901 + 3_900_000_000}\n")
    machine.change(f"{place}/cpu.stat", "61234567890", "61434567890")

    assert first == {
        "cgroup/memory_limit_bytes": 16 * GIB,
        "cgroup/memory_used_bytes": 11 * GIB,
        "cgroup/cpu_limit_cores": 4.0,
    }
    assert probe.read() == first | {
        "cgroup/cpu_used_cores": pytest.approx(3.9),
        "cgroup/cpu_throttled_seconds_per_second": pytest.approx(0.2),
    }


def test_the_root_of_a_hierarchy_is_the_machine_and_is_read_elsewhere(recorded, clock):
    """On this machine memory has a group of ours, and the processors do not."""
    machine = recorded("hybrid")
    probe = CgroupProbe(clock, *machine.cgroups)

    probe.read()
    clock.advance(1)

    assert probe.read() == {"cgroup/memory_used_bytes": 7716864 - 864256}


@pytest.mark.parametrize("lacks", ["memory.current", "memory.stat"])
def test_usage_that_the_kernel_does_not_tell_is_left_out(recorded, clock, lacks):
    """The limit stays, and so does all of the other controller."""
    machine = recorded("v2_container")
    (machine.cgroups[0] / lacks).unlink()

    values = CgroupProbe(clock, *machine.cgroups).read()

    assert set(values) == {"cgroup/memory_limit_bytes", "cgroup/cpu_limit_cores"}


@pytest.mark.parametrize(
    ("name", "of_machine", "of_group", "file", "before", "after"),
    [
        ("v2_container", 3, 2, "memory.events", "oom_kill 2", "oom_kill 3"),
        ("v1_kubernetes", 11, 4, "memory/memory.oom_control", "oom_kill 4", "oom_kill 5"),
        ("v2_slurm", 0, 0, "{job}/memory.events", "oom_kill 0", "oom_kill 1"),
        ("hybrid", 0, 0, "memory/jobs/box/memory.oom_control", "oom_kill 0", "oom_kill 1"),
    ],
)
def test_a_kill_for_memory_is_counted_in_the_group_that_has_the_limit(
    recorded, clock, name, of_machine, of_group, file, before, after
):
    """And the machine's count is another one."""
    machine = recorded(name)
    said: list = []
    group = CgroupProbe(clock, *machine.cgroups)
    conditions = Conditions("n1", said.append, clock)
    probe = OomProbe(conditions, group.oom_kills, machine.proc / "vmstat")

    first = probe.read()
    file = file.format(job="system.slice/slurmstepd.scope/job_4711")
    machine.change(f"sys/fs/cgroup/{file}", f"{before}\n", f"{after}\n")
    second = probe.read()

    assert first == {"memory/oom_kills_total": of_machine, "cgroup/oom_kills_total": of_group}
    assert second["cgroup/oom_kills_total"] == of_group + 1
    assert [(event.name, event.subject) for event in said] == [("oom_kill", "cgroup")]


@pytest.mark.parametrize("name", ["hybrid", "v2_container"])
def test_pressure_comes_from_the_kernels_total(recorded, clock, name):
    """Microseconds of waiting, whatever the averages beside it are."""
    machine = recorded(name)
    probe = PressureProbe(clock, machine.proc / "pressure")
    text = (machine.proc / "pressure/cpu").read_text()
    total = int(text.splitlines()[0].rpartition("=")[2])

    probe.read()
    clock.advance(2)
    machine.change("proc/pressure/cpu", f"total={total}\n", f"total={total + 500_000}\n")

    assert probe.read() == {
        "pressure/cpu_some_ratio": 0.25,
        "pressure/cpu_full_ratio": 0.0,
        "pressure/memory_some_ratio": 0.0,
        "pressure/memory_full_ratio": 0.0,
        "pressure/io_some_ratio": 0.0,
        "pressure/io_full_ratio": 0.0,
    }


def test_ports_of_infiniband_with_old_counters_down_and_without_any(recorded, clock):
    """Each port has what its card counts; one that stands at its end has no rate."""
    machine = recorded("infiniband")
    probe = InfinibandProbe(clock, machine.sys / "class/infiniband")

    probe.read()
    clock.advance(1)
    sent = "sys/class/infiniband/mlx5_0/ports/1/counters/port_xmit_data"
    machine.write(sent, f"{871236450918273 + 5_000_000_000}\n")
    values = probe.read()

    assert {n: v for n, v in values.items() if "/mlx5_0/" in n} == {
        "infiniband/mlx5_0/1/received_bytes_per_second": 0.0,
        "infiniband/mlx5_0/1/sent_bytes_per_second": 20e9,
        "infiniband/mlx5_0/1/symbol_errors_total": 1,
        "infiniband/mlx5_0/1/receive_errors_total": 2,
        "infiniband/mlx5_0/1/send_discards_total": 7,
        "infiniband/mlx5_0/1/link_downs_total": 3,
    }
    assert not [n for n in values if n.startswith("infiniband/mlx4_0/1/") and "per_second" in n]
    assert values["infiniband/mlx4_0/2/sent_bytes_per_second"] == 0.0
    assert not [n for n in values if "/irdma0/" in n]


def test_disks_networks_memory_and_processors_of_a_recorded_machine(recorded, clock, monkeypatch):
    """psutil itself reads the recorded files; loops, zram, bridges and lo are not counted."""
    machine = recorded("hybrid")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(machine.proc))
    probes = host_probes(clock, sys_dir=machine.sys, proc_dir=machine.proc)

    for probe in probes:
        probe.read()
    clock.advance(2)
    machine.change("proc/diskstats", " 228398 56411226 ", " 228398 56415322 ")
    machine.change("proc/net/dev", "eth0: 2122049521", "eth0: 2124049521")
    values = {name: value for probe in probes for name, value in probe.read().items()}

    assert values["disk/read_bytes_per_second"] == 4096 * 512 / 2
    assert values["network/received_bytes_per_second"] == 1e6
    assert {n.split("/")[1] for n in values if n.startswith("disk/") and n.count("/") == 2} == {
        "vda"
    }
    assert {n.split("/")[1] for n in values if n.startswith("network/") and n.count("/") == 2} == {
        "eth0"
    }
    total = int((machine.proc / "meminfo").read_text().split()[1]) * 1024
    assert values["memory/total_bytes"] == total


@pytest.mark.parametrize("name", MACHINES)
def test_all_that_a_recorded_machine_gives_is_on_the_page_of_metrics(recorded, clock, name):
    """Whatever its layout is."""
    machine = recorded(name)
    probes = [
        CgroupProbe(clock, *machine.cgroups),
        PressureProbe(clock, machine.proc / "pressure"),
    ]

    for probe in probes:
        probe.read()
    clock.advance(1)
    names = [each for probe in probes for each in probe.read()]

    assert names
    assert {each: len(metric_list.ALL.described(each)) for each in names} == dict.fromkeys(names, 1)
