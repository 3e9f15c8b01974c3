"""PCIe rates: counters where the driver has them, short measurements in turn where not."""

from __future__ import annotations

import pynvml
import pytest

from telemetry.hardware.pcie import PcieRates
from tests.telemetry.hardware.fakes import FakeGpu, FakeNvml

MEASURED = {"pcie_rx_bytes_per_second": 5_000_000.0, "pcie_tx_bytes_per_second": 2_000_000.0}


def started(*gpus):
    nvml = FakeNvml(*gpus)
    nvml.nvmlInit()
    return nvml


def test_byte_counters_are_preferred_and_nothing_blocks(clock):
    """A rate is known from the second reading on."""
    gpu = FakeGpu("GPU-aaa")
    nvml = started(gpu)
    rates = PcieRates(nvml, clock)

    assert rates.read(0, gpu) == {}
    clock.advance(1)
    gpu.rx_bytes, gpu.tx_bytes = 700, 50
    assert rates.read(0, gpu) == {"pcie_rx_bytes_per_second": 700, "pcie_tx_bytes_per_second": 50}
    assert "nvmlDeviceGetPcieThroughput" not in nvml.calls


@pytest.mark.parametrize(
    "gpu",
    [
        FakeGpu("GPU-aaa", counts_pcie=False),
        FakeGpu(
            "GPU-aaa",
            errors={"nvmlDeviceGetFieldValues": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND},
        ),
        FakeGpu("GPU-aaa", pcie_value_type=pynvml.NVML_VALUE_TYPE_UNSIGNED_INT),
    ],
    ids=["field unknown", "function unknown", "32 bits"],
)
def test_without_usable_counters_the_driver_measures(clock, gpu):
    """An older driver answers in thousands of bytes a second."""
    assert PcieRates(started(gpu), clock).read(0, gpu) == MEASURED


def test_gpus_that_must_be_measured_take_turns_one_a_second(clock):
    """Each measurement blocks for 40 ms; eight of them would stop the sampler."""
    gpus = [FakeGpu(f"GPU-{i}", counts_pcie=False) for i in range(3)]
    rates = PcieRates(started(*gpus), clock)
    measured = []

    for _ in range(60):  # three seconds at 20 Hz
        measured += [i for i, gpu in enumerate(gpus) if rates.read(i, gpu)]
        clock.advance(0.05)

    assert len(measured) == 4
    assert sorted(measured[:3]) == [0, 1, 2]
    assert measured[3] == measured[0]


def test_a_lost_gpu_does_not_keep_its_turn(clock):
    """The others would wait for it for ever."""
    gpus = [FakeGpu(f"GPU-{i}", counts_pcie=False) for i in range(2)]
    rates = PcieRates(started(*gpus), clock)
    for index, gpu in enumerate(gpus):
        rates.read(index, gpu)
    rates.forget(1)
    clock.advance(1)

    assert rates.read(0, gpus[0]) == MEASURED


def test_a_gpu_that_was_lost_starts_its_counters_anew(clock):
    """What its counters did while it was away is not a rate."""
    gpu = FakeGpu("GPU-aaa", rx_bytes=10)
    rates = PcieRates(started(gpu), clock)
    rates.read(0, gpu)
    rates.forget(0)
    clock.advance(1)
    gpu.rx_bytes = 10**9

    assert rates.read(0, gpu) == {}


def test_other_failures_are_the_callers(clock):
    """Whether a GPU is lost is not decided here."""
    gpu = FakeGpu("GPU-aaa", lost=True)

    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        PcieRates(started(gpu), clock).read(0, gpu)
