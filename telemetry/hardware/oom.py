"""Out of memory: processes that the kernel killed because no memory was left.

In: /proc/vmstat for the machine, and the control group of this process for its container.
Out: `memory/oom_kills_total`, `cgroup/oom_kills_total`, and a condition `oom_kill`.
Never: news from before the first reading; the counters begin with the machine, or the group.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from telemetry.hardware.conditions import Conditions
from telemetry.hardware.probe import Values

QUIET_S: Final = 300.0


class OomProbe:
    """Counts of processes that were killed for memory. Not thread-safe."""

    name = "oom"

    def __init__(
        self,
        conditions: Conditions,
        group_kills: Callable[[], int | None],
        vmstat: Path = Path("/proc/vmstat"),
    ) -> None:
        self._conditions = conditions
        self._vmstat = vmstat
        self._group_kills = group_kills
        self._last: dict[str, int] = {}

    def read(self) -> Values:
        values: Values = {}
        for name, where, count in (
            ("memory/oom_kills_total", "this machine", kills_of_machine(self._vmstat)),
            ("cgroup/oom_kills_total", "this container", self._group_kills()),
        ):
            if count is None:
                continue
            values[name] = count
            self._see(name.partition("/")[0], where, count)
        self._conditions.expire()
        return values

    def _see(self, subject: str, where: str, count: int) -> None:
        before = self._last.get(subject)
        self._last[subject] = count
        if before is not None and count > before:
            killed = count - before
            text = f"{where} had no memory left: the kernel killed {killed} process(es)"
            self._conditions.pulse(
                "oom_kill", subject, text, quiet_s=QUIET_S, severity="error", value=count
            )


def kills_of_machine(vmstat: Path = Path("/proc/vmstat")) -> int | None:
    """Return how many processes the kernel has killed for memory, None if it does not count."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:
        return None
    counts = dict(line.split() for line in lines if line.startswith("oom_kill "))
    return int(counts["oom_kill"]) if "oom_kill" in counts else None
