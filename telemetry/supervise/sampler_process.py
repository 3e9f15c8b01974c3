"""Sampler process: starts the sampler as a child of the sidecar, and restarts it.

In: the address of the sidecar, and the sampling rate.
Out: one process, started again RESTART_NS after it ended.
Never: waits for it while the sidecar serves, or for one that the kernel does not let go.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterable
from typing import Final, Protocol

from shared.clock import Clock
from shared.ids import sanitized_host
from shared.programs import module_command, module_environ
from telemetry.hardware.watched import Watched, order_of
from telemetry.run_dir import Process

log = logging.getLogger("telemetry.service")

RESTART_NS: Final = 5_000_000_000
WATCHED_MAX: Final = 256


class Run(Protocol):
    """The part of an open run that tells of its processes."""

    run_id: str

    @property
    def processes(self) -> dict[str, Process]: ...


def processes_on(host: str, runs: Iterable[Run]) -> list[Watched]:
    """Return the processes of these runs that are on a host, in order."""
    return [
        Watched(run.run_id, source, process.pid, process.start_ns)
        for run in runs
        for source, process in sorted(run.processes.items())
        if process.start_ns > 0 and sanitized_host(process.host) == host
    ][:WATCHED_MAX]


class SamplerProcess:
    """The sampler's process. Not thread-safe: the journal thread owns it."""

    def __init__(self, endpoint: str, host: str, hz: float, clock: Clock) -> None:
        self._command = module_command(
            "telemetry.hardware.sampler", "--endpoint", endpoint, "--host", host, "--hz", str(hz)
        )
        self._is_wanted = hz > 0
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before_ns = 0
        self._order = b""
        self._left_to_write = b""

    def watch(self, processes: list[Watched]) -> None:
        """Let the sampler read these training processes, and no others, from now on."""
        order = order_of(processes)
        if order != self._order and not self._left_to_write:
            self._order = self._left_to_write = order
        self._write()

    def _write(self) -> None:
        """Write as much of an order as the pipe takes; the rest follows with the next call."""
        if not self._left_to_write or self._process is None or self._process.stdin is None:
            return
        try:
            written = os.write(self._process.stdin.fileno(), self._left_to_write)
        except (OSError, ValueError):
            # Frozen, with its pipe full: the rest later. Ended: the next one gets the whole.
            return
        self._left_to_write = self._left_to_write[written:]

    def keep(self) -> None:
        """Start the sampler if it is not running."""
        if not self._is_wanted:
            return
        now = self._clock.monotonic_ns()
        if self._process is not None and self._process.poll() is not None:
            log.warning("sampler ended with exit code %s", self._process.returncode)
            self.end()
            self._not_before_ns = now + RESTART_NS
        if self._process is None and now >= self._not_before_ns:
            self._process = subprocess.Popen(
                self._command,
                env=module_environ(os.environ),
                stdin=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            self._left_to_write = self._order

    def ask_to_end(self) -> None:
        """Close its standard input: it sends its last values and ends by itself."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def end(self) -> None:
        """End it within about 4 s, by a kill if need be. May be called twice."""
        if self._process is None:
            return
        self.ask_to_end()
        self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            # Not for ever: a thread that a driver holds in the kernel does not end by a kill.
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:
                log.warning("sampler %d does not end, and is left behind", self._process.pid)
        self._process = None
