"""Proc: facts about processes from /proc, by their pid and the time of their start.

In: the root of a /proc tree.
Out: what a process says of itself; None where it has ended, or is another's.
Never: takes one process for another that has its number: the start tells them apart.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
HOST_PID_NAMESPACE: Final = "pid:[4026531836]"
"""The kernel's fixed number of the first PID namespace, that of the machine itself."""


class Stat(NamedTuple):
    """A process as /proc/<pid>/stat says: its parent, and its use of CPU, threads and memory."""

    parent: int
    cpu_s: float
    threads: int
    start_ticks: int
    rss_bytes: int
    name: str = ""


class Io(NamedTuple):
    """Bytes that a process had read from, and written to, storage."""

    read: int
    written: int


def stat_of(root: Path, pid: int) -> Stat | None:
    """Return the newest facts of a process, or None if there is none of this pid."""
    text = _text(f"{root}/{pid}/stat")
    # The name in field 2 may hold spaces and brackets: fields are counted after its end.
    fields = text.rpartition(")")[2].split() if text else []
    if len(fields) < 22:
        return None
    return Stat(
        parent=int(fields[1]),
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND,
        threads=int(fields[17]),
        start_ticks=int(fields[19]),
        rss_bytes=int(fields[21]) * PAGE_BYTES,
        name=(text or "").partition("(")[2].rpartition(")")[0],
    )


def exit_status_of(root: Path, pid: int) -> int | None:
    """Return the wait status of a process that has ended, and whose parent has not taken note."""
    text = _text(f"{root}/{pid}/stat")
    fields = text.rpartition(")")[2].split() if text else []
    # Field 52, since Linux 3.5. It is 0 for whom the kernel does not let see it.
    if len(fields) < 50 or fields[0] != "Z" or fields[49] == "0":
        return None
    return int(fields[49])


def io_of(root: Path, pid: int) -> Io | None:
    """Return the I/O of a process; None where we may not see it."""
    counts = dict(_pairs(_text(f"{root}/{pid}/io") or ""))
    if not {"read_bytes", "write_bytes"} <= counts.keys():
        return None
    return Io(int(counts["read_bytes"]), int(counts["write_bytes"]))


def open_files_of(root: Path, pid: int) -> int | None:
    """Return the number of open file descriptors of a process; None where we may not see it."""
    try:
        return len(os.listdir(f"{root}/{pid}/fd"))  # noqa: PTH208 - names, and no objects
    except OSError:
        return None


def own_pid_of(root: Path, pid: int) -> int | None:
    """Return the pid that a process has in its own, innermost PID namespace."""
    for name, value in _pairs(_text(f"{root}/{pid}/status") or ""):
        if name == "NSpid" and (words := value.split()):
            return int(words[-1])
    return None


def pids(root: Path) -> list[int]:
    """Return the pids of all processes that can be seen."""
    try:
        return [int(name) for name in os.listdir(root) if name.isdecimal()]  # noqa: PTH208
    except OSError:
        return []


def boot_time_s(root: Path) -> float | None:
    """Return the wall time at which the machine was started, in s."""
    for line in (_text(f"{root}/stat") or "").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return None


def is_host_namespace(root: Path) -> bool:
    """Return True if our pids are the machine's own, those that a driver counts by."""
    try:
        return os.readlink(f"{root}/self/ns/pid") == HOST_PID_NAMESPACE  # noqa: PTH115
    except OSError:
        return False


def _pairs(text: str) -> list[tuple[str, str]]:
    parts = (line.partition(":") for line in text.splitlines())
    return [(name, value.strip()) for name, separator, value in parts if separator]


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - fast
            return file.read()
    except OSError:  # it has ended, or is not ours to see
        return None
