"""Host: processors, memory, disks and networks of this machine, through psutil.

In: psutil, or a substitute for it in tests, and a clock for the rates.
Out: `cpu_percent`, `cpu/…`, `load/…`, `memory…`, `swap/…`, `disk/…`, `network/…`.
Never: waits. Each reading is a probe of its own, so that one that fails costs no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from shared.clock import Clock
from telemetry.hardware.infiniband import InfinibandProbe
from telemetry.hardware.pressure import PressureProbe
from telemetry.hardware.probe import Probe, Values
from telemetry.hardware.rates import TotalRate

# An event holds at most 1,024 values: the rest is left for other readings.
MAX_CHARTED_CORES: Final = 512

# Disks, and cards, that have values of their own; machines with more have the sum.
MAX_CHARTED_DEVICES: Final = 32

# Reading the frequency opens several files a core. Just under a second, so that
# jitter at 1 Hz does not skip every other reading.
FREQUENCY_INTERVAL_NS: Final = 900_000_000


def host_probes(
    clock: Clock,
    system: Any = psutil,
    sys_dir: Path = Path("/sys"),
    proc_dir: Path = Path("/proc"),
) -> list[Probe]:
    """Return the probes of this machine that need no accelerator."""
    return [
        CpuProbe(system),
        LoadProbe(system),
        FrequencyProbe(clock, system),
        MemoryProbe(system),
        SwapProbe(system),
        DiskProbe(clock, system, sys_dir / "block"),
        NetworkProbe(clock, system, sys_dir / "class/net"),
        PressureProbe(clock, proc_dir / "pressure"),
        InfinibandProbe(clock, sys_dir / "class/infiniband"),
    ]


class CpuProbe:
    """Share of time that the processors were busy since the last reading, in %.

    From the time counters themselves: `psutil.cpu_percent` answers its first
    call with a 0.0 that means nothing.
    """

    name = "cpu"

    def __init__(self, system: Any = psutil) -> None:
        self._system = system
        self._last: list[tuple[float, float]] = []

    def read(self) -> Values:
        now = [_busy_and_total(times) for times in self._system.cpu_times(percpu=True)]
        last, self._last = self._last, now
        # A core that went offline shifts the numbers of the others: no pair can be compared.
        if len(last) != len(now):
            return {}
        # A counter may step back a little (iowait does); a time that was spent is never below 0.
        spent = [
            (max(0.0, busy - busy_before), max(0.0, total - total_before))
            for (busy_before, total_before), (busy, total) in zip(last, now, strict=True)
        ]
        values: Values = {}
        _put_percent(values, "cpu_percent", sum(b for b, _ in spent), sum(t for _, t in spent))
        for core, (busy, total) in enumerate(spent[:MAX_CHARTED_CORES]):
            _put_percent(values, f"cpu/{core}/percent", busy, total)
        return values


class LoadProbe:
    """Number of tasks that want to run, averaged by the kernel over 1, 5 and 15 minutes."""

    name = "load"

    def __init__(self, system: Any = psutil) -> None:
        self._system = system

    def read(self) -> Values:
        return dict(zip(("load/1m", "load/5m", "load/15m"), self._system.getloadavg(), strict=True))


class FrequencyProbe:
    """The mean clock of the cores, at most once a second. Many virtual machines have none."""

    name = "cpu frequency"

    def __init__(self, clock: Clock, system: Any = psutil) -> None:
        self._clock = clock
        self._system = system
        self._due_ns: int | None = None

    def read(self) -> Values:
        now_ns = self._clock.monotonic_ns()
        if self._due_ns is not None and now_ns < self._due_ns:
            return {}
        self._due_ns = now_ns + FREQUENCY_INTERVAL_NS
        frequency = self._system.cpu_freq()
        # psutil says 0 where the kernel says nothing.
        if frequency is None or not frequency.current:
            return {}
        return {"cpu/frequency_hertz": frequency.current * 1e6}


class MemoryProbe:
    """Memory of the whole machine, whatever a container may use of it."""

    name = "memory"

    def __init__(self, system: Any = psutil) -> None:
        self._system = system

    def read(self) -> Values:
        memory = self._system.virtual_memory()
        return {
            "memory_percent": float(memory.percent),
            "memory/total_bytes": int(memory.total),
            "memory/used_bytes": int(memory.used),
            "memory/available_bytes": int(memory.available),
        }


class SwapProbe:
    """Swap in use, and in all."""

    name = "swap"

    def __init__(self, system: Any = psutil) -> None:
        self._system = system

    def read(self) -> Values:
        swap = self._system.swap_memory()
        return {"swap/used_bytes": int(swap.used), "swap/total_bytes": int(swap.total)}


class DiskProbe:
    """Bytes per second from and to the disks themselves.

    Partitions, loop devices, device mapper and RAID pass the same bytes on
    again, so only what has a device behind it counts.
    """

    name = "disk"

    def __init__(
        self, clock: Clock, system: Any = psutil, block_dir: Path = Path("/sys/block")
    ) -> None:
        self._clock = clock
        self._system = system
        self._choose = _Choice(lambda names: _physical(names, block_dir))
        self._read, self._written, self._busy = TotalRate(), TotalRate(), TotalRate()

    def read(self) -> Values:
        # nowrap=True would hide the reset of a counter; the rates here handle resets.
        disks = self._system.disk_io_counters(perdisk=True, nowrap=False) or {}
        now_ns = self._clock.monotonic_ns()
        chosen = self._choose(disks)
        read = self._read.update({n: disks[n].read_bytes for n in chosen}, now_ns)
        written = self._written.update({n: disks[n].write_bytes for n in chosen}, now_ns)
        # Only Linux counts the time in ms in which a disk had something to do.
        busy = {n: disks[n].busy_time / 1e3 for n in chosen if hasattr(disks[n], "busy_time")}
        self._busy.update(busy, now_ns)
        return {
            **_known({"disk/read_bytes_per_second": read, "disk/write_bytes_per_second": written}),
            **_by_device("disk", "read_bytes_per_second", self._read),
            **_by_device("disk", "write_bytes_per_second", self._written),
            **_by_device("disk", "busy_ratio", self._busy, most=1.0),
        }


class NetworkProbe:
    """Bytes per second over the network cards.

    Bridges, bonds and virtual pairs pass the same bytes on again, so only cards
    with a device behind them count. In a container none has one; there all but
    the loopback count. Bytes that RDMA moves past the kernel are not counted.
    """

    name = "network"

    def __init__(
        self, clock: Clock, system: Any = psutil, net_dir: Path = Path("/sys/class/net")
    ) -> None:
        self._clock = clock
        self._system = system
        self._choose = _Choice(
            lambda names: _physical(names, net_dir) or [n for n in names if n != "lo"]
        )
        self._received, self._sent = TotalRate(), TotalRate()

    def read(self) -> Values:
        cards = self._system.net_io_counters(pernic=True, nowrap=False) or {}
        now_ns = self._clock.monotonic_ns()
        chosen = self._choose(cards)
        received = self._received.update({n: cards[n].bytes_recv for n in chosen}, now_ns)
        sent = self._sent.update({n: cards[n].bytes_sent for n in chosen}, now_ns)
        totals = {
            "network/received_bytes_per_second": received,
            "network/sent_bytes_per_second": sent,
        }
        return {
            **_known(totals),
            **_by_device("network", "received_bytes_per_second", self._received),
            **_by_device("network", "sent_bytes_per_second", self._sent),
        }


class _Choice:
    """A cached choice among names, made again only when the names change."""

    def __init__(self, choose: Callable[[Sequence[str]], list[str]]) -> None:
        self._choose = choose
        self._names: list[str] = []
        self._chosen: list[str] = []

    def __call__(self, names: Iterable[str]) -> list[str]:
        current = list(names)
        if current != self._names:
            self._names, self._chosen = current, self._choose(current)
        return self._chosen


def _physical(names: Sequence[str], sys_dir: Path) -> list[str]:
    # sysfs writes a slash in a device's name (cciss/c0d0) as '!'.
    return [n for n in names if (sys_dir / n.replace("/", "!") / "device").exists()]


def _busy_and_total(times: Any) -> tuple[float, float]:
    """Return seconds a core was busy, and in all; `user` and `nice` include guest time."""
    spent = times._asdict()
    total = sum(s for kind, s in spent.items() if kind not in ("guest", "guest_nice"))
    return total - spent["idle"] - spent.get("iowait", 0.0), total


def _put_percent(values: Values, name: str, part: float, whole: float) -> None:
    if whole > 0:
        values[name] = min(100.0, 100.0 * part / whole)


def _by_device(group: str, name: str, rates: TotalRate, most: float = math.inf) -> Values:
    """Return the rates of the single devices; a slash in a name would make a group of it."""
    chosen = list(rates.newest.items())[:MAX_CHARTED_DEVICES]
    return {f"{group}/{d.replace('/', '!')}/{name}": min(most, rate) for d, rate in chosen}


def _known(values: dict[str, float | None]) -> Values:
    return {name: value for name, value in values.items() if value is not None}
