"""GPU processes: the memory of a GPU that each training process holds.

In: the processes that the driver names, and the watched ones that we see.
Out: `compute_processes`, and `process/<run>/<source>/memory_used_bytes` of a GPU.
Never: a guess: the driver counts processes by the numbers of the machine. From within a PID
namespace they can't be matched, so they are left out, and the reason is said once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from telemetry.hardware.probe import Report, Values
from telemetry.hardware.watched import Watched

LEFT_OUT = (
    "GPU memory by process is left out: the driver counts processes by the machine's numbers, "
    "and this PID namespace has others (a container with --pid=host has not)"
)


class GpuProcesses:
    """Matches the driver's processes with the watched ones. Not thread-safe.

    owners: returns the watched process of each pid. is_host_namespace: returns True if the
    driver's pids are ours.
    """

    def __init__(
        self,
        owners: Callable[[], Mapping[int, Watched]],
        is_host_namespace: Callable[[], bool],
        report: Report,
    ) -> None:
        self._owners = owners
        self._is_host_namespace = is_host_namespace
        self._report = report
        self._has_told = False

    def read(self, nvml: Any, index: int, handle: Any) -> Values:
        """Return what one GPU's processes hold.

        Raises:
            NVMLError: the GPU or the driver does not answer; of the module passed in.
        """
        found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        values: Values = {"compute_processes": len(found)}
        owners = self._owners()
        if not found or not owners:
            return values
        if not self._is_host_namespace():
            self._tell()
            return values
        held: dict[Watched, int] = defaultdict(int)
        for process in found:
            owner = owners.get(int(process.pid))
            if owner is not None and process.usedGpuMemory is not None:
                held[owner] += int(process.usedGpuMemory)
        for owner, size in held.items():
            values[f"{owner.prefix}/memory_used_bytes"] = size
        return values

    def _tell(self) -> None:
        if not self._has_told:
            self._has_told = True
            self._report("info", LEFT_OUT)
