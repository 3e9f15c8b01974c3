"""Host readings: processors, memory, disks and networks."""

from __future__ import annotations

import pytest

from shared.clock import SystemClock
from telemetry.hardware.host import (
    CpuProbe,
    DiskProbe,
    FrequencyProbe,
    LoadProbe,
    MemoryProbe,
    NetworkProbe,
    SwapProbe,
    host_probes,
)
from tests.telemetry.hardware.fakes import CpuTimes, FakeSystem, card, disk


@pytest.fixture
def system():
    return FakeSystem()


def test_the_first_reading_of_the_processors_says_nothing(system):
    """A percentage needs two readings; psutil's own 0.0 would be a lie."""
    assert CpuProbe(system).read() == {}


def test_processors_are_busy_by_the_share_of_time_that_was_neither_idle_nor_waiting(system):
    """Waiting for a disk is not work, and a guest's time is already in user."""
    probe = CpuProbe(system)
    system.cores = [CpuTimes(0, 0, 0), CpuTimes(0, 0, 0)]
    probe.read()
    system.cores = [
        CpuTimes(user=3, system=1, idle=4, iowait=2, guest=3),
        CpuTimes(user=0, system=0, idle=10),
    ]

    values = probe.read()

    assert values == {"cpu_percent": 20.0, "cpu/0/percent": 40.0, "cpu/1/percent": 0.0}


def test_a_wait_counter_that_steps_back_gives_no_negative_percentage(system):
    """The kernel's iowait may shrink; busy time stays within 0 and 100."""
    probe = CpuProbe(system)
    system.cores = [CpuTimes(user=0, idle=0, iowait=5)]
    probe.read()
    system.cores = [CpuTimes(user=1, idle=10, iowait=4)]

    assert 0 <= probe.read()["cpu_percent"] <= 100


def test_processors_that_did_not_tick_between_two_readings_have_no_percentage(system):
    """Two readings within one kernel tick say nothing, rather than zero."""
    probe = CpuProbe(system)
    probe.read()

    assert probe.read() == {}


def test_a_core_that_goes_offline_costs_one_reading(system):
    """The others shift by one, so nothing can be compared until the next reading."""
    probe = CpuProbe(system)
    system.cores = [CpuTimes(1), CpuTimes(50)]
    probe.read()
    system.cores = [CpuTimes(51)]

    assert probe.read() == {}

    system.cores = [CpuTimes(52, 0, 1)]
    assert probe.read()["cpu_percent"] == 50.0


def test_more_cores_than_an_event_can_hold_are_charted_only_in_part(system):
    """An event of more than 1,024 values would be refused whole."""
    probe = CpuProbe(system)
    system.cores = [CpuTimes(0)] * 2000
    probe.read()
    system.cores = [CpuTimes(1)] * 2000

    values = probe.read()

    assert len(values) == 513
    assert values["cpu_percent"] == 100.0


def test_load_memory_and_swap_go_by_their_names(system):
    """Names carry their units."""
    assert LoadProbe(system).read() == {"load/1m": 1.5, "load/5m": 1.0, "load/15m": 0.5}
    assert MemoryProbe(system).read() == {
        "memory_percent": 25.0,
        "memory/total_bytes": 4 << 30,
        "memory/used_bytes": 1 << 30,
        "memory/available_bytes": 3 << 30,
    }
    assert SwapProbe(system).read() == {"swap/used_bytes": 4096, "swap/total_bytes": 8192}


def test_frequency_is_in_hertz_and_read_at_most_once_a_second(clock, system):
    """At 20 samples a second its many files are not opened each time."""
    probe = FrequencyProbe(clock, system)

    assert probe.read() == {"cpu/frequency_hertz": 2.5e9}
    clock.advance(0.05)
    assert probe.read() == {}
    clock.advance(0.94)  # a little early, as ticks are
    assert probe.read() == {"cpu/frequency_hertz": 2.5e9}


@pytest.mark.parametrize("mhz", [None, 0.0])
def test_a_machine_that_does_not_tell_its_frequency_has_none(clock, system, mhz):
    """Virtual machines say nothing, or zero."""
    system.mhz = mhz

    assert FrequencyProbe(clock, system).read() == {}


def test_disk_rates_count_what_has_a_device_and_nothing_twice(clock, system, tmp_path):
    """Partitions, loops and device mapper pass on the same bytes."""
    (tmp_path / "sda/device").mkdir(parents=True)
    (tmp_path / "cciss!c0d0/device").mkdir(parents=True)
    (tmp_path / "dm-0").mkdir()
    names = ("sda", "sda1", "dm-0", "cciss/c0d0")
    probe = DiskProbe(clock, system, tmp_path)
    system.disks = {name: disk(0, 0) for name in names}

    assert probe.read() == {}

    clock.advance(2)
    system.disks = {name: disk(1000, 500) for name in names}
    assert probe.read() == {
        "disk/read_bytes_per_second": 1000.0,
        "disk/write_bytes_per_second": 500.0,
        "disk/sda/read_bytes_per_second": 500.0,
        "disk/sda/write_bytes_per_second": 250.0,
        "disk/cciss!c0d0/read_bytes_per_second": 500.0,
        "disk/cciss!c0d0/write_bytes_per_second": 250.0,
    }


def test_a_disk_is_busy_by_the_share_of_time_in_which_it_had_something_to_do(
    clock, system, tmp_path
):
    """Never more than all of it, whatever the rounding of the kernel."""
    (tmp_path / "sda/device").mkdir(parents=True)
    probe = DiskProbe(clock, system, tmp_path)
    shares = []
    for busy_ms in (0, 250, 1260):
        system.disks = {"sda": disk(0, 0, busy_ms)}
        shares.append(probe.read().get("disk/sda/busy_ratio"))
        clock.advance(1)

    assert shares == [None, 0.25, 1.0]


def test_a_disk_counter_that_went_backwards_leaves_only_that_rate_out(clock, system, tmp_path):
    """The other direction is still known."""
    (tmp_path / "sda/device").mkdir(parents=True)
    probe = DiskProbe(clock, system, tmp_path)
    system.disks = {"sda": disk(1000, 1000)}
    probe.read()
    clock.advance(1)
    system.disks = {"sda": disk(5, 1100)}

    assert probe.read() == {
        "disk/write_bytes_per_second": 100.0,
        "disk/sda/write_bytes_per_second": 100.0,
    }


def test_network_rates_count_cards_and_not_the_bridges_over_them(clock, system, tmp_path):
    """A container's traffic passes its pair, the bridge and the card."""
    (tmp_path / "eth0/device").mkdir(parents=True)
    probe = NetworkProbe(clock, system, tmp_path)
    system.cards = {name: card(0, 0) for name in ("lo", "docker0", "eth0")}
    probe.read()
    clock.advance(0.5)
    system.cards = {name: card(100, 50) for name in ("lo", "docker0", "eth0")}

    assert probe.read() == {
        "network/received_bytes_per_second": 200.0,
        "network/sent_bytes_per_second": 100.0,
        "network/eth0/received_bytes_per_second": 200.0,
        "network/eth0/sent_bytes_per_second": 100.0,
    }


def test_in_a_container_all_but_the_loopback_count(clock, system, tmp_path):
    """There the network is one end of a virtual pair, with no device behind it."""
    probe = NetworkProbe(clock, system, tmp_path)
    system.cards = {"lo": card(0, 0), "eth0": card(0, 0)}
    probe.read()
    clock.advance(1)
    system.cards = {"lo": card(9999, 9999), "eth0": card(10, 20)}

    assert probe.read()["network/received_bytes_per_second"] == 10.0


def test_a_machine_without_disks_or_cards_has_no_rates(clock, system, tmp_path):
    """Nothing to read is nothing said."""
    for probe in (DiskProbe(clock, system, tmp_path), NetworkProbe(clock, system, tmp_path)):
        probe.read()
        clock.advance(1)
        assert probe.read() == {}


def test_this_machine_can_be_read():
    """The real psutil answers, with values that an event may hold."""
    values = {}
    for probe in host_probes(SystemClock()):
        values.update(probe.read())

    assert values["memory/available_bytes"] > 0
    assert 0 <= values["memory_percent"] <= 100
    assert values["load/1m"] >= 0
    assert all(type(value) in (int, float) for value in values.values())
