"""Fakes with real behaviour: a clock that is set by hand, a psutil, and an NVML with GPUs."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pynvml

CpuTimes = namedtuple("CpuTimes", "user system idle iowait guest", defaults=[0.0] * 5)


class FakeSystem:
    """What the host probes ask psutil for, with values a test sets."""

    def __init__(self) -> None:
        self.cores = [CpuTimes()]
        self.disks: dict[str, Any] = {}
        self.cards: dict[str, Any] = {}
        self.mhz: float | None = 2500.0

    def cpu_times(self, percpu: bool) -> list[CpuTimes]:
        assert percpu
        return self.cores

    def getloadavg(self) -> tuple[float, float, float]:
        return (1.5, 1.0, 0.5)

    def cpu_freq(self) -> Any:
        return None if self.mhz is None else SimpleNamespace(current=self.mhz)

    def virtual_memory(self) -> Any:
        return SimpleNamespace(percent=25.0, total=4 << 30, used=1 << 30, available=3 << 30)

    def swap_memory(self) -> Any:
        return SimpleNamespace(used=4096, total=8192)

    def disk_io_counters(self, perdisk: bool, nowrap: bool) -> dict[str, Any]:
        assert perdisk and not nowrap
        return self.disks

    def net_io_counters(self, pernic: bool, nowrap: bool) -> dict[str, Any]:
        assert pernic and not nowrap
        return self.cards


def disk(read_bytes: int, write_bytes: int, busy_ms: int | None = None) -> Any:
    busy = {} if busy_ms is None else {"busy_time": busy_ms}
    return SimpleNamespace(read_bytes=read_bytes, write_bytes=write_bytes, **busy)


def card(received_bytes: int, sent_bytes: int) -> Any:
    return SimpleNamespace(bytes_recv=received_bytes, bytes_sent=sent_bytes)


@dataclass
class FakeGpu:
    """One GPU; errors maps an NVML function to the code that it fails with."""

    uuid: str
    errors: dict[str, int] = field(default_factory=dict)
    lost: bool = False
    counts_pcie: bool = True
    pcie_value_type: int = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    rx_bytes: int = 0
    tx_bytes: int = 0
    power_milliwatts: int = 300_000


class FakeNvml:
    """The pynvml module over GPUs of our own; its constants and errors are the real ones."""

    def __init__(self, *gpus: FakeGpu) -> None:
        self.gpus = list(gpus)
        self.is_driver_loaded = True
        self.is_initialized = False
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("NVML", "nvmlEventType", "c_nvml")) or name == "nvmlMemory_v2":
            return getattr(pynvml, name)
        if name.startswith("nvml") and hasattr(pynvml, name):
            return partial(self._lack, name)
        raise AttributeError(name)

    def _lack(self, name: str, *arguments: Any) -> Any:
        """The answer of a driver from before this function came."""
        self.calls.append(name)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    def reload_driver(self) -> None:
        """What a process sees afterwards: its session is gone."""
        self.is_initialized = False

    def nvmlInit(self) -> None:
        self.calls.append("nvmlInit")
        if not self.is_driver_loaded:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        self.is_initialized = True

    def nvmlShutdown(self) -> None:
        self._need_session("nvmlShutdown")
        self.is_initialized = False

    def nvmlDeviceGetCount(self) -> int:
        self._need_session("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        gpu = self.gpus[index]
        self._ask("nvmlDeviceGetHandleByIndex", gpu)
        return gpu

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        self._ask("nvmlDeviceGetUUID", gpu)
        return gpu.uuid

    def nvmlDeviceGetUtilizationRates(self, gpu: FakeGpu) -> Any:
        self._ask("nvmlDeviceGetUtilizationRates", gpu)
        return SimpleNamespace(gpu=87, memory=40)

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu, version: int) -> Any:
        self._ask("nvmlDeviceGetMemoryInfo", gpu)
        assert version == pynvml.nvmlMemory_v2
        return SimpleNamespace(used=20 << 30, total=80 << 30)

    def nvmlDeviceGetTemperature(self, gpu: FakeGpu, sensor: int) -> int:
        self._ask("nvmlDeviceGetTemperature", gpu)
        return 61

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGpu) -> int:
        self._ask("nvmlDeviceGetPowerUsage", gpu)
        return gpu.power_milliwatts

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: FakeGpu) -> int:
        self._ask("nvmlDeviceGetEnforcedPowerLimit", gpu)
        return 700_000

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu) -> int:
        self._ask("nvmlDeviceGetTotalEnergyConsumption", gpu)
        return 12_345_678

    def nvmlDeviceGetClockInfo(self, gpu: FakeGpu, kind: int) -> int:
        self._ask("nvmlDeviceGetClockInfo", gpu)
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: FakeGpu) -> int:
        self._ask("nvmlDeviceGetCurrentClocksEventReasons", gpu)
        return 0x44

    def nvmlDeviceGetTotalEccErrors(self, gpu: FakeGpu, kind: int, since: int) -> int:
        self._ask("nvmlDeviceGetTotalEccErrors", gpu)
        return 3 if kind == pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED else 40

    def nvmlDeviceGetFieldValues(self, gpu: FakeGpu, fields: list[int]) -> list[Any]:
        self._ask("nvmlDeviceGetFieldValues", gpu)
        if not all(isinstance(f, int) for f in fields):  # NVLink: this GPU has none
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        counts = {198: gpu.rx_bytes, 197: gpu.tx_bytes}
        code = pynvml.NVML_SUCCESS if gpu.counts_pcie else pynvml.NVML_ERROR_NOT_SUPPORTED
        return [
            SimpleNamespace(
                nvmlReturn=code,
                valueType=gpu.pcie_value_type,
                value=SimpleNamespace(ullVal=counts[f]),
            )
            for f in fields
        ]

    def nvmlDeviceGetPcieThroughput(self, gpu: FakeGpu, counter: int) -> int:
        self._ask("nvmlDeviceGetPcieThroughput", gpu)
        return {pynvml.NVML_PCIE_UTIL_RX_BYTES: 5000, pynvml.NVML_PCIE_UTIL_TX_BYTES: 2000}[counter]

    def _need_session(self, name: str) -> None:
        self.calls.append(name)
        if not self.is_initialized:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)

    def _ask(self, name: str, gpu: FakeGpu) -> None:
        self._need_session(name)
        if gpu.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if name in gpu.errors:
            raise pynvml.NVMLError(gpu.errors[name])
