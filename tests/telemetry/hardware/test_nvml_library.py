"""The real nvidia-ml-py over a libnvidia-ml.so.1 of ours: scenarios that no machine here has."""

from __future__ import annotations

from collections import Counter

import pytest

from telemetry.hardware.metric_list import GPUS
from tests.telemetry.hardware.fake_nvml import Machine
from tests.telemetry.hardware.probe_process import ProbeProcess

GIB = 1 << 30


@pytest.fixture
def start(machine):
    """Set the scene, and start the process that looks at it."""
    opened = []

    def started(on: Machine = machine, **scenario):
        on.play(**scenario)
        opened.append(ProbeProcess(on))
        return opened[-1]

    yield started
    for process in opened:
        process.close()


def of_gpu(values, index=0):
    prefix = f"gpu/{index}/"
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def told(process):
    return [(event["name"], event["subject"], event["is_active"]) for event in process.events]


def test_a_hopper_gpu_has_all_readings(start):
    """Through the struct layouts that the library and nvidia-ml-py share."""
    process = start(gpm=1, temperature=55, processes="12:1024 13:2048")
    process.read()

    values = of_gpu(process.read(after_s=1))

    rates = {name: values.pop(name) for name in list(values) if name.endswith("per_second")}
    assert rates.keys() == {
        "pcie_rx_bytes_per_second",
        "pcie_tx_bytes_per_second",
        "nvlink_rx_bytes_per_second",
        "nvlink_tx_bytes_per_second",
    }
    assert all(rate >= 0 for rate in rates.values())
    assert values.pop("energy_joules") >= 5000
    assert values.pop("energy_since_start_joules") >= 0
    assert values == {
        "uuid": "GPU-00000000-0000-0000-0000-000000000000",
        "utilization_percent": 87.0,
        "memory_used_bytes": 20 * GIB,
        "memory_total_bytes": 80 * GIB,
        "memory_percent": 25.0,
        "temperature_celsius": 55,
        "power_watts": 300.0,
        "power_limit_watts": 700.0,
        "clock_sm_hertz": 1_980_000_000,
        "clock_memory_hertz": 2_619_000_000,
        "throttle_reasons": 0,
        "throttle_names": "none",
        "throttle/sw_power_cap": False,
        "throttle/hw_slowdown": False,
        "throttle/sw_thermal": False,
        "throttle/hw_thermal": False,
        "throttle/power_brake": False,
        "ecc_uncorrected_total": 0,
        "ecc_corrected_total": 0,
        "remapped_rows_corrected_total": 0,
        "remapped_rows_uncorrected_total": 0,
        "remapped_rows_pending": False,
        "remapped_rows_failed": False,
        "compute_processes": 2,
        "sm_active_percent": 2.0,
        "sm_occupancy_percent": 3.0,
        "tensor_active_percent": 5.0,
        "memory_bandwidth_percent": 10.0,
        "fp64_active_percent": 11.0,
        "fp32_active_percent": 12.0,
        "fp16_active_percent": 13.0,
        "integer_active_percent": 4.0,
    }


def test_all_readings_of_gpus_are_on_the_page_of_metrics_and_no_other(start):
    """Of a whole GPU and a divided one; processes need a training run."""
    process = start(gpus=2, gpm=1, gpu__1__mig=2)
    process.read()

    names = set(process.read(after_s=1))

    found = {name: GPUS.described(name) for name in names}
    assert {name: len(metrics) for name, metrics in found.items()} == dict.fromkeys(names, 1)
    listed = {metric.name for metric in GPUS.metrics if "<run>" not in metric.name}
    assert {metrics[0].name for metrics in found.values()} == listed


def test_eight_gpus_are_told_apart_by_uuid(start):
    """Each with its own readings."""
    process = start(gpus=8, gpu__7__temperature=90)

    values = process.read()

    uuids = {of_gpu(values, index)["uuid"] for index in range(8)}
    assert len(uuids) == 8
    assert of_gpu(values, 7)["temperature_celsius"] == 90
    assert of_gpu(values, 6)["temperature_celsius"] == 61


def test_a_gpu_that_falls_off_the_bus_is_lost_until_it_answers_again(start, machine):
    """Its neighbours go on; the loss has an onset and an end."""
    process = start(gpus=2)
    process.read()
    machine.play(gpu__1__lost=1, gpu__1__xid=79)

    lost = [process.read(after_s=1), process.read(after_s=1)]
    machine.play(gpu__1__lost=None)
    back = process.read(after_s=1)

    assert [of_gpu(values, 1) for values in lost] == [{}, {}]
    assert all(of_gpu(values, 0)["power_watts"] == 300.0 for values in lost)
    assert of_gpu(back, 1)["power_watts"] == 300.0
    assert told(process) == [
        ("gpu_lost", "gpu/1", True),
        ("gpu_xid", "gpu/1", True),
        ("gpu_lost", "gpu/1", False),
    ]
    assert process.events[1]["value"] == 79
    assert process.events[1]["severity"] == "error"
    assert process.events[1]["text"].endswith("XID 79: the GPU has fallen off the bus")
    assert process.events[2]["lasted_s"] == 2.0


def test_an_xid_is_over_when_no_other_came_for_five_minutes(start, machine):
    """Nobody has to look at a light that never goes out again."""
    process = start()
    process.read()
    machine.play(xid=13)
    process.read(after_s=1)
    process.read(after_s=299)
    assert told(process) == [("gpu_xid", "gpu/0", True)]

    process.read(after_s=1)

    assert told(process)[1:] == [("gpu_xid", "gpu/0", False)]
    assert process.events[0]["severity"] == "warning"  # a program's own mistake


def test_throttling_begins_and_ends(start, machine):
    """Heat does; a power cap at full load is no news."""
    process = start(throttle=0x4)
    for _ in range(5):
        process.read(after_s=1)
    assert told(process) == []
    machine.play(throttle=0x4 | 0x40)
    for _ in range(5):
        values = process.read(after_s=1)
    assert of_gpu(values)["throttle_names"] == "sw_power_cap hw_thermal"
    assert of_gpu(values)["throttle/hw_thermal"] is True
    machine.play(throttle=0)
    for _ in range(20):
        process.read(after_s=1)

    assert told(process) == [("gpu_throttled", "gpu/0", True), ("gpu_throttled", "gpu/0", False)]
    assert process.events[0]["text"].endswith("is throttled: hw_thermal")


def test_ecc_errors_and_rows_are_conditions_only_while_they_are_news(start, machine):
    """A count from before the start is none; a pending row ends with the reset."""
    process = start(ecc_uncorrected=2)
    process.read()
    machine.play(ecc_uncorrected=3, rows_pending=1)
    process.read(after_s=1)
    machine.play(rows_pending=0)
    process.read(after_s=1)
    process.read(after_s=300)

    assert told(process) == [
        ("gpu_ecc_uncorrected", "gpu/0", True),
        ("gpu_rows_pending", "gpu/0", True),
        ("gpu_rows_pending", "gpu/0", False),
        ("gpu_ecc_uncorrected", "gpu/0", False),
    ]
    assert process.events[0]["value"] == 3


def test_a_divided_gpu_shows_its_instances(start):
    """NVML has no utilization for it; GPM has, of each instance."""
    process = start(mig=2, gpm=1)
    process.read()

    values = of_gpu(process.read(after_s=1))

    assert "utilization_percent" not in values
    assert values["mig/0/uuid"].startswith("MIG-")
    assert values["mig/0/uuid"] != values["mig/1/uuid"]
    assert values["mig/1/memory_total_bytes"] == 10 * GIB
    assert values["mig/1/sm_active_percent"] == 2.0


def test_a_gpu_that_is_made_whole_again_has_its_utilization_back(start, machine):
    """What it did not have is asked for again when it was divided in another way."""
    process = start(mig=2)
    assert "utilization_percent" not in of_gpu(process.read())
    machine.play(mig=0)
    process.read(after_s=11)

    values = of_gpu(process.read(after_s=1))

    assert values["utilization_percent"] == 87.0
    assert not any(name.startswith("mig/") for name in values)


def test_what_a_gpu_does_not_have_is_asked_for_once(start, machine):
    """In every session: a call into the driver that fails costs as much as one that works."""
    process = start(
        error__nvmlDeviceGetTotalEccErrors=3, error__nvmlDeviceGetRemappedRows=3, nvlink=0
    )
    for _ in range(10):
        process.read(after_s=1)

    asked = Counter(function for function, _ in machine.calls())
    assert asked["nvmlDeviceGetTotalEccErrors"] == 2  # corrected, uncorrected
    assert asked["nvmlDeviceGetRemappedRows"] == 1
    assert asked["nvmlGpmQueryDeviceSupport"] == 1
    assert asked["nvmlDeviceGetPowerUsage"] == 10
    assert asked["nvmlDeviceGetFieldValues"] == 11  # PCIe each time, NVLink once


def test_a_driver_from_before_the_functions_came_gives_what_it_has(
    start, old_nvml_library, tmp_path
):
    """Memory and throttle reasons from the functions of then; no NVLink, GPM or row fields."""
    process = start(Machine(old_nvml_library, tmp_path), throttle=0x8)
    process.read()

    values = of_gpu(process.read(after_s=1))

    assert values["memory_used_bytes"] == 20 * GIB + (600 << 20)
    assert values["throttle_names"] == "hw_slowdown"
    assert values["pcie_rx_bytes_per_second"] in (2e6, 5e6)
    assert not any("nvlink" in name or name == "sm_active_percent" for name in values)


def test_energy_goes_on_when_the_driver_begins_to_count_again(start, machine):
    """A reload sets its counter to 0."""
    process = start(energy_mj=9_000_000)
    process.read()
    machine.play(energy_mj=9_500_000)
    process.read(after_s=1)
    machine.play(energy_mj=250_000)

    values = of_gpu(process.read(after_s=1))

    assert values["energy_joules"] == 250.0
    assert values["energy_since_start_joules"] == 750.0


def test_xids_of_gpus_are_each_delivered_once(start, machine):
    """Two GPUs, one after the other, both within one reading."""
    process = start(gpus=2)
    process.read()
    machine.play(gpu__0__xid=31, gpu__1__xid=74)

    process.read(after_s=1)
    process.read(after_s=1)

    assert [(e["subject"], e["value"]) for e in process.events] == [("gpu/0", 31), ("gpu/1", 74)]
