"""Descendants: the processes that a sink process has started, to be killed with it.

In: the pid of the process, while it lives.
Out: the end of all that it has started, also of those in a session of their own.
Never: kills a process that took over the pid of one that is gone.
"""

from __future__ import annotations

import os
import signal
from typing import Final

import psutil

RECORD_NS: Final = 2_000_000_000
"""Time between two looks for child processes: each reads the whole process table."""


class Descendants:
    """The descendants of one process. Not thread-safe."""

    def __init__(self) -> None:
        self._start_times: dict[int, float] = {}
        self._recorded_ns = 0

    def record(self, pid: int) -> None:
        """Note what a process has started; what was noted before stays."""
        try:
            for child in psutil.Process(pid).children(recursive=True):
                self._start_times[child.pid] = child.create_time()
        except psutil.Error:
            pass

    def record_now_and_then(self, pid: int, now: int) -> None:
        """Note what a process has started, if that was not done lately."""
        if now - self._recorded_ns > RECORD_NS:
            self._recorded_ns = now
            self.record(pid)

    def kill(self) -> None:
        """Kill all that were noted, and forget them."""
        for pid, start_time in self._start_times.items():
            _kill_if_same(pid, start_time)
        self._start_times = {}


def _kill_if_same(pid: int, start_time: float) -> None:
    try:
        if psutil.Process(pid).create_time() == start_time:
            os.kill(pid, signal.SIGKILL)
    except (psutil.Error, ProcessLookupError):
        pass
