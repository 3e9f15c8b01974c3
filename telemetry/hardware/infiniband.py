"""InfiniBand: rates and errors of each port, also of traffic that passes the kernel by (RDMA).

In: /sys/class/infiniband/<device>/ports/<port>/counters.
Out: `infiniband/<device>/<port>/…`.
Never: a rate from a counter that stands at its end: 32-bit counters of old cards stop there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shared.clock import Clock
from telemetry.hardware.probe import Values
from telemetry.hardware.rates import CounterRate

# The counters of data are in words of four bytes, one for each of four lanes.
WORD_BYTES: Final = 4
RATES: Final = {
    "port_rcv_data": "received_bytes_per_second",
    "port_xmit_data": "sent_bytes_per_second",
}
TOTALS: Final = {
    "symbol_error": "symbol_errors_total",
    "port_rcv_errors": "receive_errors_total",
    "port_xmit_discards": "send_discards_total",
    "link_downed": "link_downs_total",
}
STOPPED: Final = frozenset({2**32 - 1, 2**64 - 1})


class InfinibandProbe:
    """All InfiniBand and RoCE ports of this machine. Not thread-safe."""

    name = "infiniband"

    def __init__(self, clock: Clock, root: Path = Path("/sys/class/infiniband")) -> None:
        self._clock = clock
        self._root = root
        self._rates: dict[str, CounterRate] = {}

    def read(self) -> Values:
        values: Values = {}
        for counters in sorted(self._root.glob("*/ports/*/counters")):
            port = counters.parent
            prefix = f"infiniband/{port.parent.parent.name}/{port.name}"
            now_ns = self._clock.monotonic_ns()
            for file, name in RATES.items():
                count = _number(counters / file)
                if count is None:
                    continue
                rate = self._rates.setdefault(f"{prefix}/{name}", CounterRate())
                per_second = rate.update(count * WORD_BYTES, now_ns)
                if per_second is not None:
                    values[f"{prefix}/{name}"] = per_second
            for file, name in TOTALS.items():
                if (count := _number(counters / file)) is not None:
                    values[f"{prefix}/{name}"] = count
        return values


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:  # this port does not count it
        return None
    number = int(text) if text.isdecimal() else None
    return None if number in STOPPED else number
