"""Process ends: the exit status of trainers that are no children of ours, as the kernel tells it.

In: the processes that runs have named, on this machine.
Out: for a run that went silent, if its process is gone, by which exit code or signal, and how
many processes the kernel killed meanwhile for want of memory.
Never: takes another process of the same pid for the trainer, or waits longer than EXIT_WAIT_S.

A pidfd is held for each, which stays with its process after the pid is free again. Linux tells
the status of a process through it:

    since 6.15, once its parent has taken note     PIDFD_GET_INFO with PIDFD_INFO_EXIT
    before that, while the parent has not          the last field of /proc/<pid>/stat

Else it is only known that the process is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.clock import Clock
from shared.ids import MAIN_SOURCE, sanitized_host
from telemetry.exits import EXIT_WAIT_S, Ending, Ends, Kills, OpenRun
from telemetry.hardware import proc
from telemetry.hardware.cgroup import CgroupProbe
from telemetry.hardware.oom import kills_of_machine
from telemetry.hardware.watched import START_TOLERANCE_NS
from telemetry.run_dir import Process

HELD_MAX: Final = 64
"""Runs whose process is held at most: each takes a file descriptor."""

# struct pidfd_info of Linux 6.15: two u64 (mask, cgroupid), eleven u32, and the i32 exit_code.
_INFO: Final = struct.Struct("=QQ11Ii")
_EXIT_BIT: Final = 1 << 3
# _IOWR(0xFF, 11, struct pidfd_info)
_GET_INFO: Final = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11


@dataclass(frozen=True)
class _Held:
    process: Process
    fd: int
    kills: Kills


class ProcessEnds(Ends):
    """The main processes of the open runs. Not thread-safe: the journal thread owns it."""

    def __init__(
        self, host: str, count_kills: Callable[[], Kills], root: Path = Path("/proc")
    ) -> None:
        """host: this machine. count_kills: returns the kernel's counts now."""
        self._host, self._count_kills, self._root = host, count_kills, root
        self._held: dict[str, _Held] = {}
        self._boot_s = proc.boot_time_s(root)

    def look(self, runs: Iterable[OpenRun]) -> None:
        """Hold the processes of new runs, and let go of those of runs that have ended."""
        wanted = {
            run.run_id: process
            for run in runs
            if not run.is_ended and (process := self._main_process_of(run)) is not None
        }
        for run_id in [r for r, held in self._held.items() if wanted.get(r) != held.process]:
            os.close(self._held.pop(run_id).fd)
        for run_id, process in wanted.items():
            if run_id not in self._held and len(self._held) < HELD_MAX:
                self._hold(run_id, process)

    def ending_of(self, run: OpenRun, wait_s: float = 0.0) -> Ending | None:
        """Return what is known of the end of a run's process, None if it was never seen here.

        wait_s: how long an end that is under way may take; at most EXIT_WAIT_S.
        """
        held = self._held.get(run.run_id)
        if held is None or held.process != self._main_process_of(run):
            return None
        kills = self._count_kills().since(held.kills)
        poll = select.poll()
        poll.register(held.fd, select.POLLIN)
        has_ended = bool(poll.poll(min(wait_s, EXIT_WAIT_S) * 1e3))
        code = self._exit_code_of(held) if has_ended else None
        return Ending(held.process.pid, not has_ended, code, kills)

    def close(self) -> None:
        """Let go of all processes. May be called twice."""
        while self._held:
            os.close(self._held.popitem()[1].fd)

    def _main_process_of(self, run: OpenRun) -> Process | None:
        process = run.processes.get(MAIN_SOURCE)
        is_here = process is not None and sanitized_host(process.host) == self._host
        return process if is_here else None

    def _hold(self, run_id: str, process: Process) -> None:
        try:
            fd = os.pidfd_open(process.pid)
        except (OSError, AttributeError):  # it is gone, or the kernel has no pidfds
            return
        # Looked at after the pidfd is open: from here on the pid can't become another's unseen.
        if self._is_it(process):
            self._held[run_id] = _Held(process, fd, self._count_kills())
        else:
            os.close(fd)

    def _is_it(self, process: Process) -> bool:
        stat = proc.stat_of(self._root, process.pid)
        if stat is None or self._boot_s is None:
            return False
        start_ns = self._boot_s * 1e9 + stat.start_ticks * 1e9 / proc.TICKS_PER_SECOND
        return abs(start_ns - process.start_ns) <= START_TOLERANCE_NS

    def _exit_code_of(self, held: _Held) -> int | None:
        status = _status_by_pidfd(held.fd)
        if status is None and self._is_it(held.process):
            status = proc.exit_status_of(self._root, held.process.pid)
        if status is None:
            return None
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def kill_counter(clock: Clock) -> Callable[[], Kills]:
    """Return a function that returns how many processes the kernel has killed for memory."""
    group = CgroupProbe(clock)
    return lambda: Kills(group.oom_kills(), kills_of_machine())


def _status_by_pidfd(fd: int) -> int | None:
    """Return the wait status of a process that was reaped, None where the kernel does not tell."""
    info = bytearray(_INFO.pack(_EXIT_BIT, *[0] * 13))
    with contextlib.suppress(OSError):  # ENOTTY before 6.13, ESRCH of one that is gone
        fcntl.ioctl(fd, _GET_INFO, info)
        mask, *_, status = _INFO.unpack(info)
        return int(status) if mask & _EXIT_BIT else None
    return None
