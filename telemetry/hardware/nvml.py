"""NVML: readings of each NVIDIA GPU, under `gpu/<index>/…`.

In: the pynvml module (this is the one place that imports it) and a clock.
Out: each reading that the driver gives; `gpu/<index>/uuid` identifies the GPU.
Never: a stand-in for a reading; a failure where there is no driver, or no GPU.

A session lasts from nvmlInit to the first sign that the driver went away. Then,
and where there is no driver yet, it is tried again with back-off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from shared.clock import Clock
from telemetry.hardware.pcie import PcieRates
from telemetry.hardware.probe import Report, Values

log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0

# Some drivers answer "not available" as success with all bits set.
NOT_AVAILABLE: Final = frozenset({2**32 - 1, 2**64 - 1})


def load_nvml() -> Any | None:
    """Return the pynvml module, or None where it is not installed. Loads no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _log(level: str, text: str) -> None:
    log.log(logging.getLevelNamesMapping().get(level.upper(), logging.INFO), "%s", text)


class NvmlProbe:
    """All GPUs of this machine, by NVML's own index. Not thread-safe."""

    name = "nvml"

    def __init__(self, nvml: Any | None, clock: Clock, report: Report = _log) -> None:
        self._nvml = nvml
        self._clock = clock
        self._report = report
        self._session: _Session | None = None
        self._lost: set[int] = set()
        self._had_session = False
        self._trouble: str | None = None
        self._retry_s = RETRY_FIRST_S
        self._retry_at_ns: int | None = None

    def read(self) -> Values:
        """Return the readings of all GPUs that answer; none without a driver."""
        session = self._session or self._open()
        if session is None:
            return {}
        try:
            values = session.read()
        except _DriverGone as exc:
            self._give_up(str(exc))
            return {}
        if not values:
            self._give_up("no GPU answers")
        else:
            self._is_well()
        return values

    def _open(self) -> _Session | None:
        now_ns = self._clock.monotonic_ns()
        if self._nvml is None or (self._retry_at_ns is not None and now_ns < self._retry_at_ns):
            return None
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as exc:
            self._back_off(str(exc))
            return None
        try:
            self._session = _Session(self._nvml, self._clock, self._report, self._lost)
        except self._nvml.NVMLError as exc:
            self._give_up(str(exc))
        return self._session

    def _give_up(self, reason: str) -> None:
        """End the session; a later one may find the driver again."""
        assert self._nvml is not None
        self._session = None
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            log.debug("nvml: shutdown refused, the driver is gone already")
        self._back_off(reason)

    def _back_off(self, reason: str) -> None:
        if self._trouble is None:
            text = f"nvml unavailable: {reason}; its fields are left out, tried again by itself"
            # Not a warning on a machine that never had a GPU.
            if self._had_session:
                self._report("warning", text)
            else:
                log.info(text)
        self._trouble = reason
        self._retry_at_ns = self._clock.monotonic_ns() + round(self._retry_s * 1e9)
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _is_well(self) -> None:
        if self._trouble is not None and self._had_session:
            self._report("info", "nvml available again")
        self._had_session = True
        self._trouble = None
        self._retry_s = RETRY_FIRST_S


class _DriverGone(Exception):
    """The session is over, for every GPU at once."""


class _Session:
    """GPUs and their handles between one nvmlInit and its end."""

    def __init__(self, nvml: Any, clock: Clock, report: Report, lost: set[int]) -> None:
        self._nvml = nvml
        self._report = report
        self._count: int = nvml.nvmlDeviceGetCount()
        self._handles: dict[int, Any] = {}
        self._lost = lost  # outlives the session, so that a loss is reported once
        self._pcie = PcieRates(nvml, clock)
        self._driver_gone = {
            nvml.NVML_ERROR_UNINITIALIZED,
            nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        }
        self._gpu_gone = {
            nvml.NVML_ERROR_GPU_IS_LOST,
            nvml.NVML_ERROR_RESET_REQUIRED,
            nvml.NVML_ERROR_GPU_NOT_FOUND,
        }

    def read(self) -> Values:
        values: Values = {}
        for index in range(self._count):
            for name, value in self._read_gpu(index).items():
                values[f"gpu/{index}/{name}"] = value
        return values

    def _read_gpu(self, index: int) -> Values:
        values: Values = {}
        try:
            handle = self._handle(index)
            for read in READINGS:
                values.update(self._attempt(partial(read, self._nvml, handle)))
            values.update(self._attempt(partial(self._pcie.read, index, handle)))
        except self._nvml.NVMLError as exc:
            self._set_lost(index, str(exc))
            return values
        if index in self._lost:
            self._lost.discard(index)
            self._report("info", f"gpu {index} answers again")
        return values

    def _handle(self, index: int) -> Any:
        # Kept, because fetching one costs milliseconds.
        if index not in self._handles:
            try:
                self._handles[index] = self._nvml.nvmlDeviceGetHandleByIndex(index)
            except self._nvml.NVMLError as exc:
                self._check_driver(exc)
                raise
        return self._handles[index]

    def _attempt(self, read: Callable[[], Values]) -> Values:
        """One reading; nothing where this GPU does not have it.

        Raises:
            NVMLError: the GPU is gone, and asking it for more may only take long.
            _DriverGone: so are all.
        """
        try:
            return {name: v for name, v in read().items() if v not in NOT_AVAILABLE}
        except self._nvml.NVMLError as exc:
            self._check_driver(exc)
            if exc.value in self._gpu_gone:
                raise
            return {}

    def _check_driver(self, exc: Any) -> None:
        if exc.value in self._driver_gone:
            raise _DriverGone(str(exc)) from exc

    def _set_lost(self, index: int, reason: str) -> None:
        self._handles.pop(index, None)
        self._pcie.forget(index)
        if index not in self._lost:
            self._lost.add(index)
            self._report("warning", f"gpu {index} cannot be read: {reason}")


def _uuid(nvml: Any, gpu: Any) -> Values:
    return {"uuid": str(nvml.nvmlDeviceGetUUID(gpu))}


def _utilization(nvml: Any, gpu: Any) -> Values:
    return {"utilization_percent": float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)}


def _memory(nvml: Any, gpu: Any) -> Values:
    # Version 2, as nvidia-smi: version 1 counts what the driver reserves as used.
    memory = nvml.nvmlDeviceGetMemoryInfo(gpu, version=nvml.nvmlMemory_v2)
    used, total = int(memory.used), int(memory.total)
    values: Values = {"memory_used_bytes": used, "memory_total_bytes": total}
    if total > 0 and not NOT_AVAILABLE & {used, total}:
        values["memory_percent"] = 100.0 * used / total
    return values


def _temperature(nvml: Any, gpu: Any) -> Values:
    return {"temperature_celsius": nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)}


def _power(nvml: Any, gpu: Any) -> Values:
    return _milli("power_watts", nvml.nvmlDeviceGetPowerUsage(gpu))


def _power_limit(nvml: Any, gpu: Any) -> Values:
    return _milli("power_limit_watts", nvml.nvmlDeviceGetEnforcedPowerLimit(gpu))


def _energy(nvml: Any, gpu: Any) -> Values:
    """Return energy used since the driver was loaded, in J."""
    return _milli("energy_joules", nvml.nvmlDeviceGetTotalEnergyConsumption(gpu))


def _clock_sm(nvml: Any, gpu: Any) -> Values:
    return _mega("clock_sm_hertz", nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM))


def _clock_memory(nvml: Any, gpu: Any) -> Values:
    return _mega("clock_memory_hertz", nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM))


def _throttle_reasons(nvml: Any, gpu: Any) -> Values:
    """Return the reasons for a lowered clock, as NVML's bits.

    1 idle, 2 setting, 4 software power cap, 8 hardware slowdown, 0x10 sync boost,
    0x20 software thermal, 0x40 hardware thermal, 0x80 power brake, 0x100 display.
    """
    return {"throttle_reasons": int(nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu))}


def _ecc(nvml: Any, gpu: Any) -> Values:
    """Return ECC errors since the driver was loaded; the lifetime count lags behind."""
    kind, since = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    return {"ecc_uncorrected_total": int(nvml.nvmlDeviceGetTotalEccErrors(gpu, kind, since))}


def _milli(name: str, value: int) -> Values:
    return {} if value in NOT_AVAILABLE else {name: value / 1000}


def _mega(name: str, value: int) -> Values:
    return {} if value in NOT_AVAILABLE else {name: value * 1_000_000}


READINGS: Final[tuple[Callable[[Any, Any], Values], ...]] = (
    _uuid,
    _utilization,
    _memory,
    _temperature,
    _power,
    _power_limit,
    _energy,
    _clock_sm,
    _clock_memory,
    _throttle_reasons,
    _ecc,
)
