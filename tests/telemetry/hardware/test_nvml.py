"""GPU readings: each on its own, over drivers that come and go."""

from __future__ import annotations

import logging

import pynvml
import pytest

from telemetry.hardware.nvml import NvmlProbe, load_nvml
from tests.telemetry.hardware.fakes import FakeGpu, FakeNvml

FIRST, SECOND = FakeGpu("GPU-aaa"), FakeGpu("GPU-bbb")


@pytest.fixture
def make_probe(clock, reports):
    def make(nvml):
        return NvmlProbe(nvml, clock, lambda level, text: reports.append((level, text)))

    return make


def names(values, index=0):
    prefix = f"gpu/{index}/"
    return {name.removeprefix(prefix) for name in values if name.startswith(prefix)}


def test_a_gpu_tells_all_that_it_has_in_base_units(make_probe, clock):
    """Milliwatts, millijoules and megahertz end at this edge."""
    gpu = FakeGpu("GPU-aaa")
    probe = make_probe(FakeNvml(gpu))
    probe.read()
    clock.advance(2)
    gpu.rx_bytes, gpu.tx_bytes = 4000, 1000

    assert probe.read() == {
        "gpu/0/uuid": "GPU-aaa",
        "gpu/0/utilization_percent": 87.0,
        "gpu/0/memory_used_bytes": 20 << 30,
        "gpu/0/memory_total_bytes": 80 << 30,
        "gpu/0/memory_percent": 25.0,
        "gpu/0/temperature_celsius": 61,
        "gpu/0/power_watts": 300.0,
        "gpu/0/power_limit_watts": 700.0,
        "gpu/0/energy_joules": 12345.678,
        "gpu/0/clock_sm_hertz": 1_980_000_000,
        "gpu/0/clock_memory_hertz": 2_619_000_000,
        "gpu/0/energy_since_start_joules": 0.0,
        "gpu/0/throttle_reasons": 0x44,
        "gpu/0/throttle_names": "sw_power_cap hw_thermal",
        "gpu/0/throttle/sw_power_cap": True,
        "gpu/0/throttle/hw_slowdown": False,
        "gpu/0/throttle/sw_thermal": False,
        "gpu/0/throttle/hw_thermal": True,
        "gpu/0/throttle/power_brake": False,
        "gpu/0/ecc_uncorrected_total": 3,
        "gpu/0/ecc_corrected_total": 40,
        "gpu/0/pcie_rx_bytes_per_second": 2000.0,
        "gpu/0/pcie_tx_bytes_per_second": 500.0,
    }


READING_OF = {
    "nvmlDeviceGetUUID": {"uuid"},
    "nvmlDeviceGetUtilizationRates": {"utilization_percent"},
    "nvmlDeviceGetMemoryInfo": {"memory_used_bytes", "memory_total_bytes", "memory_percent"},
    "nvmlDeviceGetTemperature": {"temperature_celsius"},
    "nvmlDeviceGetPowerUsage": {"power_watts"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit_watts"},
    "nvmlDeviceGetTotalEnergyConsumption": {"energy_joules", "energy_since_start_joules"},
    "nvmlDeviceGetClockInfo": {"clock_sm_hertz", "clock_memory_hertz"},
    "nvmlDeviceGetCurrentClocksEventReasons": {
        "throttle_reasons",
        "throttle_names",
        "throttle/sw_power_cap",
        "throttle/hw_slowdown",
        "throttle/sw_thermal",
        "throttle/hw_thermal",
        "throttle/power_brake",
    },
    "nvmlDeviceGetTotalEccErrors": {"ecc_uncorrected_total", "ecc_corrected_total"},
}


@pytest.mark.parametrize("function", READING_OF)
@pytest.mark.parametrize(
    "code",
    [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_UNKNOWN],
)
def test_a_reading_that_cannot_be_taken_is_left_out_alone(make_probe, function, code):
    """MIG has no utilization, consumer cards have no ECC: the rest stays."""
    everything = names(make_probe(FakeNvml(FIRST)).read())

    values = make_probe(FakeNvml(FakeGpu("GPU-aaa", errors={function: code}))).read()

    assert everything - names(values) == READING_OF[function]


def test_a_number_that_means_not_available_is_left_out(make_probe):
    """Some drivers answer with all bits set instead of an error."""
    gpu = FakeGpu("GPU-aaa", power_milliwatts=2**32 - 1)

    assert "power_watts" not in names(make_probe(FakeNvml(gpu)).read())


def test_a_lost_gpu_does_not_take_its_neighbours_along(make_probe, reports):
    """It is reported once, and so is its return; it is asked once a reading, no more."""
    nvml = FakeNvml(FakeGpu("GPU-aaa"), FakeGpu("GPU-bbb"))
    probe = make_probe(nvml)
    probe.read()
    nvml.gpus[0].lost = True
    nvml.calls.clear()

    lost = [probe.read(), probe.read()]

    assert [names(values, 0) for values in lost] == [set(), set()]
    assert all("power_watts" in names(values, 1) for values in lost)
    assert reports == [("warning", "gpu 0 cannot be read: GPU is lost")]
    assert nvml.calls.count("nvmlDeviceGetUUID") == 3  # once for GPU 0, twice for GPU 1

    nvml.gpus[0].lost = False
    assert "power_watts" in names(probe.read(), 0)
    assert reports[1:] == [("info", "gpu 0 answers again")]


def test_a_gpu_that_returns_has_no_rate_over_the_time_it_was_away(make_probe, clock):
    """Its counters began again, and nobody knows when."""
    nvml = FakeNvml(FakeGpu("GPU-aaa"), FakeGpu("GPU-bbb"))
    probe = make_probe(nvml)
    probe.read()
    nvml.gpus[0].lost = True
    probe.read()
    nvml.gpus[0].lost = False
    clock.advance(1)

    values = probe.read()

    assert "pcie_rx_bytes_per_second" not in names(values, 0)
    assert "pcie_rx_bytes_per_second" in names(values, 1)


def test_a_gpu_that_is_lost_in_mid_reading_keeps_what_it_said_before(make_probe):
    """Those readings were taken, and are true."""
    lost = {"nvmlDeviceGetPowerUsage": pynvml.NVML_ERROR_GPU_IS_LOST}
    values = make_probe(FakeNvml(FakeGpu("GPU-aaa", errors=lost), SECOND)).read()

    assert "temperature_celsius" in names(values, 0)
    assert "clock_sm_hertz" not in names(values, 0)
    assert "clock_sm_hertz" in names(values, 1)


def test_without_pynvml_there_are_no_gpu_values_and_no_error(make_probe, reports):
    """The package is optional."""
    assert make_probe(None).read() == {}
    assert reports == []


def test_without_a_driver_there_are_no_gpu_values_and_no_warning(make_probe, reports, caplog):
    """A machine without GPUs is an ordinary one; it is said once, in the log."""
    nvml = FakeNvml()
    nvml.is_driver_loaded = False
    probe = make_probe(nvml)

    with caplog.at_level(logging.INFO):
        assert [probe.read(), probe.read()] == [{}, {}]

    assert reports == []
    assert "Driver Not Loaded" in caplog.text


def test_an_absent_driver_is_asked_for_again_with_back_off(make_probe, clock):
    """Soon at first, then once a minute."""
    nvml = FakeNvml(FIRST)
    nvml.is_driver_loaded = False
    probe = make_probe(nvml)
    asked_at_s = []

    for second in range(300):
        before = len(nvml.calls)
        probe.read()
        if len(nvml.calls) > before:
            asked_at_s.append(second)
        clock.advance(1)

    assert asked_at_s == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]


def test_after_a_driver_reload_the_readings_come_back(make_probe, clock, reports):
    """The old session is over: its end is reported once, and a new one is opened."""
    nvml = FakeNvml(FakeGpu("GPU-aaa"))
    probe = make_probe(nvml)
    probe.read()
    nvml.reload_driver()

    assert probe.read() == {}
    assert probe.read() == {}
    clock.advance(1)
    assert "power_watts" in names(probe.read())

    assert [level for level, _ in reports] == ["warning", "info"]
    assert reports[1][1] == "nvml available again"


def test_a_driver_that_only_remembers_the_uuid_is_gone(make_probe, clock):
    """The library answers some questions from memory; that is no sign of life."""
    gpu = FakeGpu("GPU-aaa")
    nvml = FakeNvml(gpu)
    probe = make_probe(nvml)
    probe.read()
    gpu.errors["nvmlDeviceGetPowerUsage"] = pynvml.NVML_ERROR_DRIVER_NOT_LOADED

    assert probe.read() == {}

    gpu.errors.clear()
    clock.advance(1)
    assert "power_watts" in names(probe.read())
    assert nvml.calls.count("nvmlInit") == 2


def test_back_off_starts_small_again_after_a_good_session(make_probe, clock):
    """One outage does not make the next one longer."""
    nvml = FakeNvml(FakeGpu("GPU-aaa"))
    nvml.is_driver_loaded = False
    probe = make_probe(nvml)
    for _ in range(100):
        probe.read()
        clock.advance(1)
    nvml.is_driver_loaded = True
    clock.advance(60)
    assert probe.read() != {}
    nvml.reload_driver()
    probe.read()
    clock.advance(1)

    assert probe.read() != {}


def test_when_all_gpus_are_lost_a_new_session_is_tried_and_the_loss_reported_once(
    make_probe, clock, reports
):
    """A reset GPU may answer only to a new session."""
    nvml = FakeNvml(FakeGpu("GPU-aaa"))
    probe = make_probe(nvml)
    probe.read()
    nvml.gpus[0].lost = True

    for _ in range(300):
        probe.read()
        clock.advance(1)

    assert 5 < nvml.calls.count("nvmlInit") < 15
    assert [text for _, text in reports if text.startswith("gpu 0")] == [
        "gpu 0 cannot be read: GPU is lost"
    ]
    nvml.gpus[0].lost = False
    clock.advance(60)
    assert "power_watts" in names(probe.read())


def test_a_driver_without_gpus_is_no_trouble(make_probe, reports):
    """Neither an error nor a reading."""
    assert make_probe(FakeNvml()).read() == {}
    assert reports == []


def test_the_real_module_without_a_driver_behaves_like_the_fake(clock, caplog):
    """On a machine with a GPU it reads that; here at least it does no harm."""
    nvml = load_nvml()
    assert nvml is not None

    values = NvmlProbe(nvml, clock).read()

    assert all(name.startswith("gpu/") for name in values)
