"""Cgroup: limits and use of memory and CPU of a container, for cgroup versions 1 and 2.

In: /proc/self/cgroup and the tree under /sys/fs/cgroup.
Out: `cgroup/memory_…` and `cgroup/cpu_…`: usage always, a limit where there is one.
Never: writes there, or gives values of the root group: that is the whole machine.

The limit that counts is the tightest on the way up from our own group (a pod
may be held tighter than its container), and usage is read in the group that
has it. Without a limit, usage is that of the innermost group that counts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from shared.clock import Clock
from telemetry.hardware.probe import Values
from telemetry.hardware.rates import CounterRate

# Version 1 writes "no limit" as the largest number of whole pages.
V1_UNLIMITED_BYTES: Final = 1 << 60


@dataclass(frozen=True)
class Counted:
    """A group whose usage counts, its cgroup version, and the amount that it is held to.

    limit: None where no group on the way up has one.
    """

    group: Path
    version: int
    limit: float | None


class CgroupProbe:
    """Limits and use of this process's control group, read anew each time. Not thread-safe."""

    name = "cgroup"

    def __init__(
        self,
        clock: Clock,
        root: Path = Path("/sys/fs/cgroup"),
        membership: Path = Path("/proc/self/cgroup"),
    ) -> None:
        self._clock = clock
        self._root = root
        self._membership = membership
        self._cpu_group: Path | None = None
        self._used, self._throttled = CounterRate(), CounterRate()

    def read(self) -> Values:
        text = _text(self._membership)
        if text is None:
            return {}
        paths = parse_membership(text)
        return {**self._memory(paths), **self._cpu(paths)}

    def oom_kills(self) -> int | None:
        """Return the processes of the group that were killed for memory, None if not counted.

        It is the group that is held to a limit, or else our own.
        """
        paths = parse_membership(_text(self._membership) or "")
        counted = self._counted(paths, "memory", _MEMORY_V1, _MEMORY_V2)
        if counted is None:
            return None
        for name in ("memory.events", "memory.oom_control"):  # version 2, version 1
            if (count := _flat(counted.group / name).get("oom_kill")) is not None:
                return count
        return None

    def _memory(self, paths: dict[str, str]) -> Values:
        counted = self._counted(paths, "memory", _MEMORY_V1, _MEMORY_V2)
        if counted is None:
            return {}
        values: Values = {}
        if counted.limit is not None:
            values["cgroup/memory_limit_bytes"] = int(counted.limit)
        used = _memory_used_v1 if counted.version == 1 else _memory_used_v2
        used_bytes = used(counted.group)
        if used_bytes is not None:
            values["cgroup/memory_used_bytes"] = used_bytes
        return values

    def _cpu(self, paths: dict[str, str]) -> Values:
        counted = self._counted(paths, "cpu", _CPU_V1, _CPU_V2)
        if counted is None:
            return {}
        values: Values = {}
        if counted.limit is not None:
            values["cgroup/cpu_limit_cores"] = counted.limit
        stat = _flat(counted.group / "cpu.stat")
        if counted.version == 1:
            used_s = self._cpu_used_v1_s(counted.group)
            throttled_s = _scaled(stat.get("throttled_time"), 1e-9)
        else:
            used_s = _scaled(stat.get("usage_usec"), 1e-6)
            throttled_s = _scaled(stat.get("throttled_usec"), 1e-6)
        if counted.group != self._cpu_group:
            self._cpu_group = counted.group
            self._used, self._throttled = CounterRate(), CounterRate()
        now_ns = self._clock.monotonic_ns()
        _put_rate(values, "cgroup/cpu_used_cores", self._used, used_s, now_ns)
        _put_rate(
            values,
            "cgroup/cpu_throttled_seconds_per_second",
            self._throttled,
            throttled_s,
            now_ns,
        )
        return values

    def _cpu_used_v1_s(self, cpu_group: Path) -> float | None:
        """Return the CPU time used in s: version 1 counts it in the controller cpuacct."""
        if (cpu_group / "cpuacct.usage").exists():
            return _scaled(_number(cpu_group / "cpuacct.usage"), 1e-9)
        accounting = self._mount("cpuacct") / cpu_group.relative_to(self._mount("cpu"))
        return _scaled(_number(accounting / "cpuacct.usage"), 1e-9)

    def _counted(
        self, paths: dict[str, str], controller: str, v1: _Controller, v2: _Controller
    ) -> Counted | None:
        """Return the group that has the tightest limit, or else the innermost that counts usage."""
        if controller in paths:
            mount, path, files, version = self._mount(controller), paths[controller], v1, 1
        elif "" in paths:
            mount, path, files, version = self._unified(), paths[""], v2, 2
        else:
            return None
        groups = self._groups(mount, path)
        found = [
            Counted(group, version, limit)
            for group in groups
            if (limit := files.limit_of(group)) is not None
        ]
        if found:
            return min(found, key=lambda counted: counted.limit or 0.0)
        counting = (g for g in groups if (g / files.usage).exists() and not _is_root(g))
        innermost = next(counting, None)
        return None if innermost is None else Counted(innermost, version, None)

    def _mount(self, controller: str) -> Path:
        """Return the mount of a version 1 controller; cpu and cpuacct often share one."""
        for name in (controller, "cpu,cpuacct", "cpuacct,cpu"):
            if (self._root / name).is_dir() and controller in name.split(","):
                return self._root / name
        return self._root / controller

    def _unified(self) -> Path:
        if (self._root / "cgroup.controllers").exists():
            return self._root
        return self._root / "unified"

    def _groups(self, mount: Path, path: str) -> list[Path]:
        """Return the group of this process and those above it, innermost first.

        In a container the path may be the host's, which does not exist there, or begin
        with `..`: the group of this process is the mount itself then.
        """
        relative = PurePosixPath(path.lstrip("/"))
        if ".." in relative.parts or not (mount / relative).is_dir():
            return [mount]
        return [mount / relative, *(mount / parent for parent in relative.parents)]


def parse_membership(text: str) -> dict[str, str]:
    """Parse lines `id:controllers:path` to controller -> path; version 2 has the name ""."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator:
            paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _is_root(group: Path) -> bool:
    """Return True for the root of a whole hierarchy, which holds every process of the machine.

    A container may have its own group at this place. `release_agent` is in the root alone of
    version 1, and `cgroup.events` in every group of version 2 but the root.
    """
    if (group / "notify_on_release").exists():
        return (group / "release_agent").exists()
    return (group / "cgroup.procs").exists() and not (group / "cgroup.events").exists()


def _memory_limit_v1(group: Path) -> float | None:
    limit = _number(group / "memory.limit_in_bytes")
    return None if limit is None or limit >= V1_UNLIMITED_BYTES else limit


def _memory_limit_v2(group: Path) -> float | None:
    return _number(group / "memory.max")


def _memory_used_v1(group: Path) -> int | None:
    return _working_set(group, "memory.usage_in_bytes", "total_inactive_file")


def _memory_used_v2(group: Path) -> int | None:
    return _working_set(group, "memory.current", "inactive_file")


def _working_set(group: Path, usage_file: str, cache_field: str) -> int | None:
    """Return memory in use in bytes, without reclaimable cache, as `docker stats` counts it.

    The kubelet counts in the same way. A training set that was read once fills any limit
    with cache, which the kernel frees on demand.
    """
    usage = _number(group / usage_file)
    cache = _flat(group / "memory.stat").get(cache_field)
    return None if usage is None or cache is None else max(0, usage - cache)


def _cpu_limit_v1(group: Path) -> float | None:
    quota = _number(group / "cpu.cfs_quota_us")
    period = _number(group / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _cpu_limit_v2(group: Path) -> float | None:
    """Return the limit in cores from cpu.max, `quota period` in microseconds or `max period`."""
    words = (_text(group / "cpu.max") or "").split()
    if len(words) != 2 or not words[0].isdecimal() or not words[1].isdecimal() or words[1] == "0":
        return None
    return int(words[0]) / int(words[1])


class _Controller(NamedTuple):
    """The function that reads a group's limit, and the file that a group with usage has."""

    limit_of: Callable[[Path], float | None]
    usage: str


_MEMORY_V1: Final = _Controller(_memory_limit_v1, "memory.usage_in_bytes")
_MEMORY_V2: Final = _Controller(_memory_limit_v2, "memory.current")
_CPU_V1: Final = _Controller(_cpu_limit_v1, "cpu.stat")
_CPU_V2: Final = _Controller(_cpu_limit_v2, "cpu.stat")


def _put_rate(
    values: Values, name: str, rate: CounterRate, counter: float | None, now_ns: int
) -> None:
    if counter is not None and (per_second := rate.update(counter, now_ns)) is not None:
        values[name] = per_second


def _scaled(number: int | None, factor: float) -> float | None:
    return None if number is None else number * factor


def _flat(path: Path) -> dict[str, int]:
    """Read a file of `name number` lines; other lines are skipped."""
    pairs = (line.split() for line in (_text(path) or "").splitlines())
    return {p[0]: int(p[1]) for p in pairs if len(p) == 2 and p[1].isdecimal()}


def _number(path: Path) -> int | None:
    """Return the number in a file, or None where there is no file or it says `max`."""
    text = (_text(path) or "").strip()
    return int(text) if text.removeprefix("-").isdecimal() else None


def _text(path: Path) -> str | None:
    try:
        # A group's name may be any bytes; with surrogates its path can still be opened.
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # absent, or not readable: nothing is known either way
        return None
