"""GPU readings: the functions that ask NVML for one reading of a GPU each.

In: the pynvml module and the handle of a GPU.
Out: values in base units, without the GPU's prefix; NVML's own error where there are none.
Never: keeps anything between two readings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from telemetry.hardware.probe import Values

# Some drivers answer "not available" as success with all bits set.
NOT_AVAILABLE: Final = frozenset({2**32 - 1, 2**64 - 1})

THROTTLE_REASONS: Final = {
    0x1: "idle",
    0x2: "clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "power_brake",
    0x100: "display_setting",
}
CHARTED_REASONS: Final = ("sw_power_cap", "hw_slowdown", "sw_thermal", "hw_thermal", "power_brake")
"""Reasons that make a GPU slower than its settings ask; the others are ordinary states."""

Reading = Callable[[Any, Any], Values]


def uuid(nvml: Any, gpu: Any) -> Values:
    return {"uuid": str(nvml.nvmlDeviceGetUUID(gpu))}


def utilization(nvml: Any, gpu: Any) -> Values:
    return {"utilization_percent": float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)}


def memory(nvml: Any, gpu: Any) -> Values:
    # Version 2, as nvidia-smi: version 1 counts what the driver reserves as used.
    try:
        found = nvml.nvmlDeviceGetMemoryInfo(gpu, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError as exc:
        if exc.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        found = nvml.nvmlDeviceGetMemoryInfo(gpu)  # drivers before 510
    used, total = int(found.used), int(found.total)
    values: Values = {"memory_used_bytes": used, "memory_total_bytes": total}
    if total > 0 and not NOT_AVAILABLE & {used, total}:
        values["memory_percent"] = 100.0 * used / total
    return values


def temperature(nvml: Any, gpu: Any) -> Values:
    return {"temperature_celsius": nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)}


def power(nvml: Any, gpu: Any) -> Values:
    return _milli("power_watts", nvml.nvmlDeviceGetPowerUsage(gpu))


def power_limit(nvml: Any, gpu: Any) -> Values:
    return _milli("power_limit_watts", nvml.nvmlDeviceGetEnforcedPowerLimit(gpu))


def energy(nvml: Any, gpu: Any) -> Values:
    """Return energy used since the driver was loaded, in J."""
    return _milli("energy_joules", nvml.nvmlDeviceGetTotalEnergyConsumption(gpu))


def clock_sm(nvml: Any, gpu: Any) -> Values:
    return _mega("clock_sm_hertz", nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM))


def clock_memory(nvml: Any, gpu: Any) -> Values:
    return _mega("clock_memory_hertz", nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM))


def throttle_reasons(nvml: Any, gpu: Any) -> Values:
    """Return the reasons for a lowered clock: NVML's bits, their names, and the charted ones.

    1 idle, 2 setting, 4 software power cap, 8 hardware slowdown, 0x10 sync boost,
    0x20 software thermal, 0x40 hardware thermal, 0x80 power brake, 0x100 display.
    """
    try:
        bits = int(nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu))
    except nvml.NVMLError as exc:
        if exc.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        bits = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))  # drivers before 535
    if bits in NOT_AVAILABLE:
        return {}
    names = reason_names(bits)
    values: Values = {"throttle_reasons": bits, "throttle_names": " ".join(names) or "none"}
    for name in CHARTED_REASONS:
        values[f"throttle/{name}"] = name in names
    return values


def reason_names(bits: int) -> list[str]:
    """Return the names of the reasons for a lowered clock; unknown bits in hexadecimal."""
    names = [name for bit, name in THROTTLE_REASONS.items() if bits & bit]
    rest = bits & ~sum(THROTTLE_REASONS)
    return [*names, hex(rest)] if rest else names


def ecc_uncorrected(nvml: Any, gpu: Any) -> Values:
    """Return ECC errors since the driver was loaded; the lifetime count lags behind."""
    kind, since = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    return {"ecc_uncorrected_total": int(nvml.nvmlDeviceGetTotalEccErrors(gpu, kind, since))}


def ecc_corrected(nvml: Any, gpu: Any) -> Values:
    kind, since = nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_VOLATILE_ECC
    return {"ecc_corrected_total": int(nvml.nvmlDeviceGetTotalEccErrors(gpu, kind, since))}


def remapped_rows(nvml: Any, gpu: Any) -> Values:
    """Return the rows of memory that were replaced, and if a reset is needed for more."""
    corrected, uncorrected, is_pending, has_failed = nvml.nvmlDeviceGetRemappedRows(gpu)
    return {
        "remapped_rows_corrected_total": int(corrected),
        "remapped_rows_uncorrected_total": int(uncorrected),
        "remapped_rows_pending": bool(is_pending),
        "remapped_rows_failed": bool(has_failed),
    }


def _milli(name: str, value: int) -> Values:
    return {} if value in NOT_AVAILABLE else {name: value / 1000}


def _mega(name: str, value: int) -> Values:
    return {} if value in NOT_AVAILABLE else {name: value * 1_000_000}


READINGS: Final[tuple[Reading, ...]] = (
    uuid,
    utilization,
    memory,
    temperature,
    power,
    energy,
    clock_sm,
    clock_memory,
    throttle_reasons,
)
SLOW_READINGS: Final[tuple[Reading, ...]] = (
    power_limit,
    ecc_uncorrected,
    ecc_corrected,
    remapped_rows,
)
"""Readings that change seldom: taken at most once a second, however fast the sampler is."""
