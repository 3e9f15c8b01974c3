"""GPM: activity of the parts of a GPU, by the counters that Hopper and later have.

In: the NVML module, a GPU's handle, and the id of a MIG instance if it is of one.
Out: means between the last reading and this one, in %: a window of the sampler's own.
Never: a window that another program began: NVML's `utilization` is that of a time of its own.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from telemetry.hardware.probe import Values

log = logging.getLogger(__name__)

METRICS: Final = {
    2: "sm_active_percent",
    3: "sm_occupancy_percent",
    5: "tensor_active_percent",
    10: "memory_bandwidth_percent",
    11: "fp64_active_percent",
    12: "fp32_active_percent",
    13: "fp16_active_percent",
    4: "integer_active_percent",
}
"""NVML's numbers of the metrics, as in `nvmlGpmMetricId_t`, and our names."""

Place = tuple[int, int | None]
"""GPU index, and GPU instance id where MIG is on."""


class GpmReadings:
    """GPM of all GPUs of one NVML session. Not thread-safe.

    Samples are memory of the library: `forget` and `close` give it back.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._samples: dict[Place, list[Any]] = {}
        self._has_first: set[Place] = set()
        self._is_supported: dict[int, bool] = {}

    def read(self, index: int, handle: Any, gpu_instance: int | None = None) -> Values:
        """Return the activity since the last reading; empty at the first one.

        Raises:
            NVMLError: the GPU has no such counters, or does not answer.
        """
        nvml = self._nvml
        if index not in self._is_supported:
            support = nvml.nvmlGpmQueryDeviceSupport(handle)
            self._is_supported[index] = bool(support.isSupportedDevice)
        if not self._is_supported[index]:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        place = index, gpu_instance
        if place not in self._samples:
            self._samples[place] = [nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()]
        before, now = self._samples[place]
        if gpu_instance is None:
            nvml.nvmlGpmSampleGet(handle, now)
        else:
            nvml.nvmlGpmMigSampleGet(handle, gpu_instance, now)
        self._samples[place] = [now, before]
        if place not in self._has_first:
            self._has_first.add(place)
            return {}
        return self._between(before, now)

    def forget(self, index: int) -> None:
        """Drop the samples of a GPU that was lost, or whose MIG instances changed."""
        self._is_supported.pop(index, None)
        for place in [place for place in self._samples if place[0] == index]:
            self._free(place)

    def close(self) -> None:
        for place in list(self._samples):
            self._free(place)

    def _between(self, before: Any, now: Any) -> Values:
        nvml = self._nvml
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = len(METRICS)
        asked.sample1, asked.sample2 = before, now
        for place, number in enumerate(METRICS):
            asked.metrics[place].metricId = number
        nvml.nvmlGpmMetricsGet(asked)
        return {
            name: float(asked.metrics[place].value)
            for place, name in enumerate(METRICS.values())
            if asked.metrics[place].nvmlReturn == nvml.NVML_SUCCESS
        }

    def _free(self, place: Place) -> None:
        self._has_first.discard(place)
        for sample in self._samples.pop(place):
            try:
                self._nvml.nvmlGpmSampleFree(sample)
            except self._nvml.NVMLError as exc:  # the driver is gone, and the memory with it
                log.debug("nvml: sample not given back: %s", exc)
