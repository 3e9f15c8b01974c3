"""XIDs: the errors that the NVIDIA driver reports as events, by number.

In: the NVML module, and the GPUs whose events to listen for.
Out: each XID once, with the GPU that it is of.
Never: waits for an event.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Any, Final, NamedTuple

log = logging.getLogger(__name__)

MEANINGS: Final = {
    13: "graphics engine exception",
    31: "memory page fault",
    32: "corrupted push buffer",
    43: "the GPU stopped processing",
    45: "preemptive cleanup",
    48: "double-bit ECC error",
    61: "internal microcontroller breakpoint",
    62: "internal microcontroller halt",
    63: "row remapping recorded",
    64: "row remapping failed",
    69: "graphics engine class error",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    92: "high rate of single-bit ECC errors",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "GSP does not answer",
    120: "GSP error",
    140: "unrecovered ECC error",
}
"""From NVIDIA's "XID errors"; numbers that are not here are shown without a meaning."""

OF_PROGRAMS: Final = frozenset({13, 31, 32, 43, 45, 69})
"""XIDs that a program usually causes itself; all others are of the hardware or the driver."""

EVENTS_MAX: Final = 64
"""Events that are taken at one reading; a GPU in trouble may report thousands."""


class Xid(NamedTuple):
    """An error that the driver reported. gpu: its index."""

    gpu: int
    number: int
    gpu_instance: int | None

    @property
    def severity(self) -> str:
        return "warning" if self.number in OF_PROGRAMS else "error"

    @property
    def text(self) -> str:
        meaning = MEANINGS.get(self.number)
        return f"XID {self.number}: {meaning}" if meaning else f"XID {self.number}"


class XidEvents:
    """The queue of XIDs of one NVML session. Not thread-safe."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._set: Any = None
        self._is_there = True
        self._indices: dict[int, int] = {}

    def listen(self, index: int, handle: Any) -> None:
        """Register a GPU whose handle was just fetched."""
        nvml = self._nvml
        if not self._is_there:
            return
        try:
            if self._set is None:
                self._set = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._set)
        except nvml.NVMLError as exc:
            log.info("gpu %d reports no XIDs: %s", index, exc)
            self._is_there = self._set is not None
            return
        self._indices[_address(handle)] = index

    def taken(self) -> list[Xid]:
        """Return the XIDs that came since the last call."""
        nvml = self._nvml
        if not self._indices:
            return []
        found = []
        try:
            for _ in range(EVENTS_MAX):
                data = nvml.nvmlEventSetWait_v2(self._set, 0)
                index = self._indices.get(_address(data.device))
                if index is not None and data.eventType == nvml.nvmlEventTypeXidCriticalError:
                    instance = int(data.gpuInstanceId)
                    whole = instance == 2**32 - 1
                    found.append(Xid(index, int(data.eventData), None if whole else instance))
        except nvml.NVMLError as exc:
            # A lost GPU is found out by its readings: here only the queue is at its end.
            if exc.value != nvml.NVML_ERROR_TIMEOUT:
                log.debug("nvml: events: %s", exc)
        return found

    def close(self) -> None:
        """Give the set back. May be called twice."""
        event_set, self._set = self._set, None
        self._indices = {}
        if event_set is not None:
            try:
                self._nvml.nvmlEventSetFree(event_set)
            except self._nvml.NVMLError as exc:
                log.debug("nvml: events: %s", exc)


def _address(handle: Any) -> int:
    """Return the number that identifies a GPU's handle, which is a pointer."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
