"""PCIe: rates in bytes per second at which each GPU receives and sends over its bus.

In: the NVML module and a GPU's handle.
Out: `pcie_rx_bytes_per_second` and `pcie_tx_bytes_per_second`, as the GPU sees them.
Never: delays a sample by more than one blocking measurement a second.

Drivers since 565 count the bytes, which is read in half a millisecond. Older
ones only have `nvmlDeviceGetPcieThroughput`, which measures for 20 ms in the
call, twice for two directions: with eight GPUs a third of a second. There the
GPUs take turns, one a second.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from shared.clock import Clock
from telemetry.hardware.probe import Values
from telemetry.hardware.rates import CounterRate

RX: Final = "pcie_rx_bytes_per_second"
TX: Final = "pcie_tx_bytes_per_second"

# By number, since older versions of the module have no names for them.
FIELD_TX_BYTES: Final = 197
FIELD_RX_BYTES: Final = 198

# Just under a second, so that jitter at 1 Hz does not skip every other turn.
TURN_NS: Final = 900_000_000


class PcieRates:
    """PCIe rates of all GPUs of one NVML session. Not thread-safe."""

    def __init__(self, nvml: Any, clock: Clock) -> None:
        self._nvml = nvml
        self._clock = clock
        self._rates: dict[int, tuple[CounterRate, CounterRate]] = {}
        self._turns: deque[int] = deque()
        self._next_turn_ns: int | None = None

    def read(self, index: int, handle: Any) -> Values:
        """Return the rates of one GPU; empty where they are not known this time.

        Raises:
            NVMLError: the GPU or the driver does not answer; of the module passed in.
        """
        if index in self._turns:
            return self._measured(index, handle)
        counters = self._counters(handle)
        if counters is None:
            self._turns.appendleft(index)  # before GPUs that had their turn already
            return self._measured(index, handle)
        now_ns = self._clock.monotonic_ns()
        rates = self._rates.setdefault(index, (CounterRate(), CounterRate()))
        found = {
            name: rate.update(count, now_ns)
            for name, rate, count in zip((RX, TX), rates, counters, strict=True)
        }
        return {name: value for name, value in found.items() if value is not None}

    def forget(self, index: int) -> None:
        """Drop the counters and the turn of a GPU that was lost."""
        self._rates.pop(index, None)
        if index in self._turns:
            self._turns.remove(index)

    def _counters(self, handle: Any) -> tuple[int, int] | None:
        """Return bytes received and sent so far, or None where the driver has no counters."""
        nvml = self._nvml
        try:
            fields = nvml.nvmlDeviceGetFieldValues(handle, [FIELD_RX_BYTES, FIELD_TX_BYTES])
        except nvml.NVMLError as exc:
            if exc.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                return None
            raise
        for field in fields:
            if field.nvmlReturn == nvml.NVML_ERROR_GPU_IS_LOST:
                raise nvml.NVMLError(field.nvmlReturn)
            # Not 32-bit counters: they wrap several times a second on a busy bus.
            if field.nvmlReturn != nvml.NVML_SUCCESS or field.valueType not in (
                nvml.NVML_VALUE_TYPE_UNSIGNED_LONG,
                nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
            ):
                return None
        received, sent = (int(field.value.ullVal) for field in fields)
        return received, sent

    def _measured(self, index: int, handle: Any) -> Values:
        now_ns = self._clock.monotonic_ns()
        if self._turns[0] != index or (
            self._next_turn_ns is not None and now_ns < self._next_turn_ns
        ):
            return {}
        self._next_turn_ns = now_ns + TURN_NS
        self._turns.rotate(-1)
        nvml = self._nvml
        # "KB/s": the driver makes them from MB/s, in thousands.
        return {
            RX: nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_RX_BYTES) * 1000.0,
            TX: nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_TX_BYTES) * 1000.0,
        }
