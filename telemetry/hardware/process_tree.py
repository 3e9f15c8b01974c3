"""Process trees: CPU, memory, threads, files and I/O of the training processes.

In: the processes to watch, and /proc.
Out: `process/<run>/<source>/…`, each the sum over a process and all its descendants.
Never: values of a process that only has the pid: its start must be the one that was told.

DataLoader workers and the like are descendants. Looking for new ones reads all of /proc,
so that is done every 10 s; what is known of a tree is read each time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shared.clock import Clock
from telemetry.hardware import proc
from telemetry.hardware.probe import Report, Values
from telemetry.hardware.rates import TotalRate
from telemetry.hardware.watched import START_TOLERANCE_NS, Watched, WatchList

SCAN_NS: Final = 10_000_000_000
TREE_MAX: Final = 2048
"""Processes of one tree at most that are read."""


@dataclass
class _Tree:
    """A watched process and its descendants, with the counters that are read as rates."""

    watched: Watched
    root: int
    members: dict[int, int] = field(default_factory=dict)
    """Start of each member in clock ticks, by pid."""
    cpu: TotalRate = field(default_factory=TotalRate)
    read: TotalRate = field(default_factory=TotalRate)
    written: TotalRate = field(default_factory=TotalRate)


class ProcessTreeProbe:
    """Trees of all watched processes on this machine. Not thread-safe, but for `owner_of`."""

    name = "processes"

    def __init__(
        self,
        clock: Clock,
        watch_list: WatchList,
        report: Report,
        root: Path = Path("/proc"),
    ) -> None:
        self._clock = clock
        self._watch_list = watch_list
        self._report = report
        self._root = root
        self._boot_s = proc.boot_time_s(root)
        self._trees: dict[Watched, _Tree] = {}
        self._known: tuple[Watched, ...] = ()
        self._due_ns = 0
        self._said_missing: set[Watched] = set()
        self.owner_of: dict[int, Watched] = {}
        """The watched process that each pid belongs to; replaced as a whole."""

    def read(self) -> Values:
        watched = self._watch_list.newest
        now_ns = self._clock.monotonic_ns()
        if watched != self._known or now_ns >= self._due_ns:
            self._known, self._due_ns = watched, now_ns + SCAN_NS
            self._scan()
        values: Values = {}
        for tree in list(self._trees.values()):
            for name, value in self._of(tree, now_ns).items():
                values[f"{tree.watched.prefix}/{name}"] = value
        return values

    def _scan(self) -> None:
        """Find the watched processes and their descendants."""
        if not self._known:
            self._trees, self.owner_of = {}, {}
            return
        stats = {p: s for p in proc.pids(self._root) if (s := proc.stat_of(self._root, p))}
        children = defaultdict(list)
        for pid, stat in stats.items():
            children[stat.parent].append(pid)
        trees: dict[Watched, _Tree] = {}
        owners: dict[int, Watched] = {}
        for watched in self._known:
            root = self._found(watched, stats)
            if root is None:
                self._say_missing(watched)
                continue
            tree = self._trees.get(watched)
            tree = tree if tree and tree.root == root else _Tree(watched, root)
            pids = _descendants(root, children)
            tree.members = {pid: stats[pid].start_ticks for pid in pids}
            trees[watched] = tree
            owners |= dict.fromkeys(pids, watched)
        self._trees, self.owner_of = trees, owners

    def _found(self, watched: Watched, stats: dict[int, proc.Stat]) -> int | None:
        """Return the pid that a watched process has here, or None if it is not to be seen.

        A process in a container has another number there; where we see the whole machine,
        the kernel tells its own.
        """

        def is_it(pid: int) -> bool:
            stat = stats.get(pid)
            if stat is None or self._boot_s is None:
                return False
            start_ns = self._boot_s * 1e9 + stat.start_ticks * 1e9 / proc.TICKS_PER_SECOND
            return abs(start_ns - watched.start_ns) <= START_TOLERANCE_NS

        known = self._trees.get(watched)
        if known is not None and is_it(known.root):
            return known.root
        if is_it(watched.pid) and proc.own_pid_of(self._root, watched.pid) in (None, watched.pid):
            return watched.pid
        started = (pid for pid in stats if is_it(pid))
        return next((p for p in started if proc.own_pid_of(self._root, p) == watched.pid), None)

    def _say_missing(self, watched: Watched) -> None:
        if watched in self._said_missing:
            return
        self._said_missing.add(watched)
        text = (
            f"process {watched.pid} of {watched.source} of run {watched.run_id} can't be seen from "
            f"here: its CPU and memory are left out"
        )
        self._report("info", text)

    def _of(self, tree: _Tree, now_ns: int) -> Values:
        """Return the sums over a tree; members that have ended are left out of it."""
        cpu: dict[str, float] = {}
        read: dict[str, float] = {}
        written: dict[str, float] = {}
        threads = rss_bytes = files = 0
        has_files = True
        for pid, start_ticks in list(tree.members.items())[:TREE_MAX]:
            stat = proc.stat_of(self._root, pid)
            if stat is None or stat.start_ticks != start_ticks:
                del tree.members[pid]
                continue
            key = f"{pid}:{start_ticks}"
            cpu[key] = stat.cpu_s
            threads += stat.threads
            rss_bytes += stat.rss_bytes
            if (io := proc.io_of(self._root, pid)) is not None:
                read[key], written[key] = float(io.read), float(io.written)
            count = proc.open_files_of(self._root, pid)
            files, has_files = files + (count or 0), has_files and count is not None
        if not cpu:
            self._trees.pop(tree.watched, None)
            return {}
        values: Values = {"processes": len(cpu), "threads": threads, "rss_bytes": rss_bytes}
        if has_files:
            values["open_files"] = files
        _put(values, "cpu_cores", tree.cpu.update(cpu, now_ns))
        _put(values, "read_bytes_per_second", tree.read.update(read, now_ns))
        _put(values, "write_bytes_per_second", tree.written.update(written, now_ns))
        return values


def _descendants(root: int, children: dict[int, list[int]]) -> list[int]:
    found, left = {root: None}, [root]
    while left:
        for child in children.get(left.pop(), ()):
            if child not in found:
                found[child] = None
                left.append(child)
    return list(found)


def _put(values: Values, name: str, value: float | None) -> None:
    if value is not None:
        values[name] = value
