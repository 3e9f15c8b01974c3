"""The clock of a run: the time from its first row to each row, by monotonic clocks.

In: the rows of a journal, in order.
Out: seconds since the first row.
Never: follows a step of a wall clock, or runs backwards over a host's samples.

Time is counted on the monotonic clocks that rows carry. Each machine has its
own, with its own zero. The first row of a machine is taken to be at the time
that the known clocks have reached; that fixes its zero. Rank 0 and the sampler
of its host share one clock. After a reboot a machine has a new clock, and the
time for which it was off is not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from shared.ids import MAIN_SOURCE, host_of

if TYPE_CHECKING:
    from telemetry.journal.rows import Row

CLOCKS_MAX: Final = 1024
STEP_NS: Final = 100_000_000
"""Time between two updates of a clock; a new machine starts at the last update."""
BOOT_NS: Final = 1_000_000_000
SAME_MACHINE_NS: Final = 5_000_000_000
"""Largest difference between the wall and the monotonic time that passed on one machine."""


class HostClock(msgspec.Struct, frozen=True, array_like=True):
    """A machine's monotonic clock: its value at the run's start, and its last reading."""

    zero_ns: int
    last_mono_ns: int
    last_wall_ns: int


class RunClock(msgspec.Struct, frozen=True):
    """Clocks of a run's machines, by host; rank 0's is "" while its host is not known."""

    hosts: dict[str, HostClock] = {}
    elapsed_ns: int = 0

    def after(self, row: Row, rank0_host: str | None) -> RunClock:
        """Return the clock as of this row; self if it has not changed."""
        host = _machine_of(row.source, rank0_host)
        if host is None:
            return self
        mono_ns, wall_ns = row.envelope.mono_ns, row.envelope.wall_ns
        known = self.hosts.get(host)
        if known is None and host == rank0_host:
            known = self._nameless(mono_ns, wall_ns)
        if known is None or _is_new_boot(known, mono_ns, wall_ns):
            known = HostClock(mono_ns - self.elapsed_ns, mono_ns, wall_ns)
        elif mono_ns - known.last_mono_ns < STEP_NS and host in self.hosts:
            return self
        last = HostClock(known.zero_ns, mono_ns, wall_ns)
        elapsed_ns = max(self.elapsed_ns, mono_ns - last.zero_ns)
        return RunClock(self._with(host, last), elapsed_ns)

    def seconds_of(self, row: Row) -> float:
        """Return the time of a hardware row in s; below 0 if it is from before the first row."""
        known = self.hosts.get(host_of(row.source) or row.source)
        if known is None:
            return self.elapsed_ns / 1e9
        return (row.envelope.mono_ns - known.zero_ns) / 1e9

    def _nameless(self, mono_ns: int, wall_ns: int) -> HostClock | None:
        """Return rank 0's clock from before its host was known, if this row fits that machine."""
        clock = self.hosts.get("")
        if clock is None:
            return None
        passed_ns = mono_ns - clock.last_mono_ns
        is_same = abs(wall_ns - clock.last_wall_ns - passed_ns) <= SAME_MACHINE_NS
        return clock if is_same else None

    def _with(self, host: str, clock: HostClock) -> dict[str, HostClock]:
        hosts = {name: each for name, each in self.hosts.items() if name not in (host, "")}
        hosts[host] = clock
        if len(hosts) > CLOCKS_MAX:
            del hosts[next(iter(hosts))]
        return hosts


def _machine_of(source: str, rank0_host: str | None) -> str | None:
    """Return the host whose clock a source uses, or None where it is not followed."""
    if source == MAIN_SOURCE:
        return rank0_host or ""
    return host_of(source) or None


def _is_new_boot(known: HostClock, mono_ns: int, wall_ns: int) -> bool:
    """Return True if the machine was rebooted: its monotonic clock went back, its wall clock not.

    A late row is earlier by both clocks.
    """
    if mono_ns >= known.last_mono_ns:
        return False
    return (wall_ns - mono_ns) - (known.last_wall_ns - known.last_mono_ns) > BOOT_NS
