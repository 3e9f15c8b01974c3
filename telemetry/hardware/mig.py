"""MIG: the instances that a GPU is divided into, each with its own memory and activity.

In: the NVML module, and the handle of a GPU that is divided.
Out: `mig/<n>/uuid`, `mig/<n>/memory_…`, and GPM where there is any; n as in `nvidia-smi -L`.
Never: a utilization from NVML, which has none for a divided GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from shared.clock import Clock
from telemetry.hardware import gpu_readings
from telemetry.hardware.gpm import GpmReadings
from telemetry.hardware.probe import Values

LAYOUT_NS: Final = 10_000_000_000
"""Time after which it is asked again which instances there are."""


@dataclass
class _Instance:
    """One MIG device of a GPU, and the GPU instance that it is in."""

    number: int
    handle: Any
    gpu_instance: int


class MigReadings:
    """MIG instances of all GPUs of one NVML session. Not thread-safe."""

    def __init__(self, nvml: Any, clock: Clock, gpm: GpmReadings) -> None:
        self._nvml = nvml
        self._clock = clock
        self._gpm = gpm
        self._layouts: dict[int, tuple[int, list[_Instance]]] = {}
        self._without_gpm: set[int] = set()
        self._places: dict[int, list[tuple[int, int]]] = {}
        self._changed: set[int] = set()

    def has_changed(self, index: int) -> bool:
        """Return True once after a GPU was divided in another way than before."""
        is_changed = index in self._changed
        self._changed.discard(index)
        return is_changed

    def is_divided(self, handle: Any) -> bool:
        """Return True if MIG is on.

        Raises:
            NVMLError: the GPU can't be divided, or does not answer.
        """
        current, _ = self._nvml.nvmlDeviceGetMigMode(handle)
        return bool(current)

    def read(self, index: int, handle: Any) -> Values:
        """Return the readings of each instance of a GPU; empty where MIG is off.

        Raises:
            NVMLError: the GPU can't be divided, or does not answer.
        """
        now_ns = self._clock.monotonic_ns()
        due_ns, instances = self._layouts.get(index, (0, []))
        if now_ns >= due_ns:
            instances = self._found(handle) if self.is_divided(handle) else []
            self._layouts[index] = now_ns + LAYOUT_NS, instances
            self._note(index, instances)
        values: Values = {}
        for instance in instances:
            for name, value in self._of(index, handle, instance).items():
                values[f"mig/{instance.number}/{name}"] = value
        return values

    def forget(self, index: int) -> None:
        """Drop what is known of the instances of a GPU that was lost."""
        self._layouts.pop(index, None)
        self._without_gpm.discard(index)

    def _note(self, index: int, instances: list[_Instance]) -> None:
        places = [(instance.number, instance.gpu_instance) for instance in instances]
        if self._places.get(index, places) != places:
            self._changed.add(index)
            self._without_gpm.discard(index)
        self._places[index] = places

    def _found(self, handle: Any) -> list[_Instance]:
        nvml = self._nvml
        instances = []
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                device = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                gpu_instance = nvml.nvmlDeviceGetGpuInstanceId(device)
            except nvml.NVMLError as exc:
                if exc.value in (nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_INVALID_ARGUMENT):
                    continue
                raise
            instances.append(_Instance(number, device, int(gpu_instance)))
        return instances

    def _of(self, index: int, handle: Any, instance: _Instance) -> Values:
        nvml = self._nvml
        values: Values = {}
        try:
            values |= gpu_readings.uuid(nvml, instance.handle)
            values |= gpu_readings.memory(nvml, instance.handle)
        except nvml.NVMLError as exc:
            if exc.value == nvml.NVML_ERROR_GPU_IS_LOST:
                raise
            # It was destroyed, perhaps to be divided in another way: look again next time.
            self._layouts.pop(index, None)
            return {}
        if index not in self._without_gpm:
            try:
                values |= self._gpm.read(index, handle, instance.gpu_instance)
            except nvml.NVMLError as exc:
                if exc.value == nvml.NVML_ERROR_GPU_IS_LOST:
                    raise
                self._without_gpm.add(index)
        return values
