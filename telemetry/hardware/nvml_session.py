"""NVML session: the GPUs of this machine between one nvmlInit and the end of the driver.

In: the pynvml module after nvmlInit.
Out: the readings of each GPU that answers, and what they say of its health.
Never: asks again for what a GPU does not have, until it was lost or divided in another way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from shared.clock import Clock
from telemetry.hardware.gpm import GpmReadings
from telemetry.hardware.gpu_energy import EnergySinceStart
from telemetry.hardware.gpu_health import GpuHealth
from telemetry.hardware.gpu_processes import GpuProcesses
from telemetry.hardware.gpu_readings import NOT_AVAILABLE, READINGS, SLOW_READINGS
from telemetry.hardware.mig import MigReadings
from telemetry.hardware.nvlink import NvlinkRates
from telemetry.hardware.pcie import PcieRates
from telemetry.hardware.probe import Report, Values
from telemetry.hardware.xid import XidEvents

log = logging.getLogger(__name__)

SLOW_NS: Final = 900_000_000
"""Time between two slow readings: just under a second, so that jitter at 1 Hz skips none."""


class DriverGone(Exception):
    """The session is over, for every GPU at once."""


class Session:
    """GPUs and their handles between one nvmlInit and its end."""

    def __init__(
        self,
        nvml: Any,
        clock: Clock,
        report: Report,
        lost: set[int],
        health: GpuHealth,
        energy: EnergySinceStart,
        processes: GpuProcesses | None,
    ) -> None:
        self._nvml = nvml
        self._clock = clock
        self._report = report
        self._count: int = nvml.nvmlDeviceGetCount()
        self._handles: dict[int, Any] = {}
        self._lost = lost  # outlives the session, so that a loss is reported once
        self._health = health
        self._energy = energy
        self._pcie = PcieRates(nvml, clock)
        self._nvlink = NvlinkRates(nvml, clock)
        self._gpm = GpmReadings(nvml)
        self._mig = MigReadings(nvml, clock, self._gpm)
        self._processes = processes
        self._xids = XidEvents(nvml)
        self._slow_due_ns = 0
        self._unsupported: set[tuple[int, str]] = set()
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
        self._never_will = {
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            nvml.NVML_ERROR_NO_PERMISSION,
        }

    def read(self) -> Values:
        now_ns = self._clock.monotonic_ns()
        is_slow_due = now_ns >= self._slow_due_ns
        if is_slow_due:
            self._slow_due_ns = now_ns + SLOW_NS
        values: Values = {}
        for index in range(self._count):
            for name, value in self._read_gpu(index, is_slow_due).items():
                values[f"gpu/{index}/{name}"] = value
        for xid in self._xids.taken():
            self._health.see_xid(xid)
        return values

    def close(self) -> None:
        """Give back what the library holds for this session."""
        self._xids.close()
        self._gpm.close()

    def _read_gpu(self, index: int, is_slow_due: bool) -> Values:
        values: Values = {}
        try:
            handle = self._handle(index)
            for name, read in self._parts(handle, index, is_slow_due):
                values.update(self._attempt(index, name, read))
        except self._nvml.NVMLError as exc:
            self._set_lost(index, str(exc))
            return values
        self._set_well(index)
        self._health.see(index, values)
        values.update(self._energy.since_start(index, values))
        return values

    def _parts(
        self, handle: Any, index: int, is_slow_due: bool
    ) -> list[tuple[str, Callable[[], Values]]]:
        """Return the readings of a GPU that are due, by name."""
        nvml = self._nvml
        parts: list[tuple[str, Callable[[], Values]]] = [
            (read.__name__, partial(read, nvml, handle)) for read in READINGS
        ]
        parts.append(("pcie", partial(self._pcie.read, index, handle)))
        parts.append(("nvlink", partial(self._nvlink.read, index, handle)))
        if is_slow_due:
            parts += [(read.__name__, partial(read, nvml, handle)) for read in SLOW_READINGS]
            parts.append(("gpm", partial(self._gpm.read, index, handle)))
            parts.append(("mig", partial(self._read_mig, index, handle)))
            if self._processes is not None:
                parts.append(("processes", partial(self._processes.read, nvml, index, handle)))
        return parts

    def _read_mig(self, index: int, handle: Any) -> Values:
        values = self._mig.read(index, handle)
        if self._mig.has_changed(index):
            # A GPU that is divided has other readings than one that is whole.
            self._unsupported = {key for key in self._unsupported if key[0] != index}
            self._gpm.forget(index)
        return values

    def _handle(self, index: int) -> Any:
        # Kept, because fetching one costs milliseconds.
        if index not in self._handles:
            try:
                handle = self._handles[index] = self._nvml.nvmlDeviceGetHandleByIndex(index)
            except self._nvml.NVMLError as exc:
                self._check_driver(exc)
                raise
            self._xids.listen(index, handle)
        return self._handles[index]

    def _attempt(self, index: int, name: str, read: Callable[[], Values]) -> Values:
        """Take one reading; return nothing where this GPU does not have it.

        Raises:
            NVMLError: the GPU is gone, and asking it for more may only take long.
            DriverGone: so are all.
        """
        if (index, name) in self._unsupported:
            return {}
        try:
            return {name: v for name, v in read().items() if v not in NOT_AVAILABLE}
        except self._nvml.NVMLError as exc:
            self._check_driver(exc)
            if exc.value in self._gpu_gone:
                raise
            if exc.value in self._never_will:
                self._unsupported.add((index, name))
                log.debug("gpu %d has no %s: %s", index, name, exc)
            return {}

    def _check_driver(self, exc: Any) -> None:
        if exc.value in self._driver_gone:
            raise DriverGone(str(exc)) from exc

    def _set_lost(self, index: int, reason: str) -> None:
        self._handles.pop(index, None)
        self._unsupported = {key for key in self._unsupported if key[0] != index}
        for part in (self._pcie, self._nvlink, self._gpm, self._mig):
            part.forget(index)
        self._health.see_lost(index, True, reason)
        if index not in self._lost:
            self._lost.add(index)
            self._report("warning", f"gpu {index} cannot be read: {reason}")

    def _set_well(self, index: int) -> None:
        self._health.see_lost(index, False)
        if index in self._lost:
            self._lost.discard(index)
            self._report("info", f"gpu {index} answers again")
