"""NVLink: rates in bytes per second of a GPU over all of its links together.

In: the NVML module and a GPU's handle.
Out: `nvlink_rx_bytes_per_second` and `nvlink_tx_bytes_per_second`, without protocol overhead.
Never: a rate for a GPU without links; NVML's own error says that it has none.
"""

from __future__ import annotations

from typing import Any, Final

from shared.clock import Clock
from telemetry.hardware.probe import Values
from telemetry.hardware.rates import CounterRate

RX: Final = "nvlink_rx_bytes_per_second"
TX: Final = "nvlink_tx_bytes_per_second"
ALL_LINKS: Final = 2**32 - 1
KIBIBYTE: Final = 1024


class NvlinkRates:
    """NVLink rates of all GPUs of one NVML session. Not thread-safe."""

    def __init__(self, nvml: Any, clock: Clock) -> None:
        self._nvml = nvml
        self._clock = clock
        self._fields = [
            (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ALL_LINKS),
            (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ALL_LINKS),
        ]
        self._rates: dict[int, tuple[CounterRate, CounterRate]] = {}

    def read(self, index: int, handle: Any) -> Values:
        """Return the rates of one GPU; empty where they are not known this time.

        Raises:
            NVMLError: the GPU has no links, or does not answer; of the module passed in.
        """
        nvml = self._nvml
        fields = nvml.nvmlDeviceGetFieldValues(handle, self._fields)
        now_ns = self._clock.monotonic_ns()
        rates = self._rates.setdefault(index, (CounterRate(), CounterRate()))
        values: Values = {}
        for name, rate, field in zip((RX, TX), rates, fields, strict=True):
            if field.nvmlReturn != nvml.NVML_SUCCESS:
                raise nvml.NVMLError(field.nvmlReturn)
            per_second = rate.update(int(field.value.ullVal) * KIBIBYTE, now_ns)
            if per_second is not None:
                values[name] = per_second
        return values

    def forget(self, index: int) -> None:
        """Drop the counters of a GPU that was lost."""
        self._rates.pop(index, None)
