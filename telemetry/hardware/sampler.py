"""Sampler: the process that records the hardware of this machine.

In: a command line, and a pipe on stdin that its parent holds.
Out: the machine's readings at a fixed rate, through an emitter like any other.
Never: outlives its parent, or is kept from ending by a GPU that hangs.

    python -m telemetry.hardware.sampler --endpoint ipc:///run/telemetry.sock --hz 1 < pipe

The parent holds the other end of the pipe on stdin: when it dies, the sampler
reads the end of the file and stops. SIGTERM stops it too. Exit codes: 0 asked
to stop, 2 bad configuration, 75 a probe hangs and a new process may not.
"""

from __future__ import annotations

import argparse
import math
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

from shared.clock import Clock, SystemClock
from shared.emitter import Emitter
from shared.emitter.options import EmitterOptions
from shared.events import Event
from shared.ids import host_run_id, sanitized_host, source_of_host
from telemetry.hardware.cgroup import CgroupProbe
from telemetry.hardware.clocks import ClockProbe
from telemetry.hardware.conditions import Conditions
from telemetry.hardware.gpu_processes import GpuProcesses
from telemetry.hardware.guarded import GuardedProbe
from telemetry.hardware.hangs import HangWatch
from telemetry.hardware.host import host_probes
from telemetry.hardware.nvml import NvmlProbe, load_nvml
from telemetry.hardware.oom import OomProbe
from telemetry.hardware.probe import Probe, Report
from telemetry.hardware.proc import is_host_namespace
from telemetry.hardware.process_tree import ProcessTreeProbe
from telemetry.hardware.sampling import Sampler, reporter
from telemetry.hardware.watched import WatchList
from telemetry.logs import configure_logs

EXIT_BAD_CONFIG: Final = 2

Emit = Callable[[Event], object]

HZ_MIN: Final = 0.05
HZ_MAX: Final = 20.0

# A trainer's 10 ms would cost a sampler more than all of its probes: 1 % of a core.
FLUSH_INTERVAL_S: Final = 0.1

# How long a tick may wait for the GPUs: half a period, and at most this.
GUARD_TIMEOUT_MAX_S: Final = 0.5
GUARD_FIRST_TIMEOUT_S: Final = 5.0


class BadConfig(ValueError):
    """A value that cannot be used; the message says which, and what may be."""


@dataclass(frozen=True)
class SamplerConfig:
    """Configuration of a sampler, checked."""

    endpoint: str
    host: str = ""
    hz: float = 1.0
    spool_dir: Path | None = None
    close_timeout_s: float = 5.0
    hang_restart_s: float = 60.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            BadConfig: a value is out of range.
        """
        if not self.endpoint:
            raise BadConfig("endpoint is empty: it must be an address such as ipc:///run/t.sock")
        if not HZ_MIN <= self.hz <= HZ_MAX:  # false for NaN as well
            raise BadConfig(f"hz is {self.hz:g}: it must be from {HZ_MIN:g} to {HZ_MAX:g}")
        for name, least_s in (("close_timeout_s", 0), ("hang_restart_s", 1)):
            seconds = getattr(self, name)
            if not least_s <= seconds < math.inf:
                raise BadConfig(f"{name} is {seconds:g}: it must be {least_s} or more, and finite")

    @property
    def host_name(self) -> str:
        """Name of this machine in the metrics."""
        return sanitized_host(self.host or socket.gethostname())


class StopSignal:
    """A wait that ends early on SIGTERM, on SIGINT, or when the parent closes stdin.

    One select for all three, so that signals need no thread and no lock.
    What the parent writes goes to on_input. A stdin that is no pipe (a terminal,
    /dev/null) is not watched.
    Main thread only.
    """

    def __init__(
        self, stdin_fd: int = 0, on_input: Callable[[bytes], None] = lambda data: None
    ) -> None:
        self._is_stopped = False
        self._on_input = on_input
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        self._watched = [self._wake_read]
        if _is_pipe(stdin_fd):
            self._watched.append(stdin_fd)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def wait(self, seconds: float) -> bool:
        """Wait that long, or until it is time to stop; return True if it is."""
        deadline = time.monotonic() + seconds
        while not self._is_stopped:
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select(self._watched, [], [], max(0.0, left_s))
            for fd in ready:
                self._is_stopped |= self._is_at_end(fd)
            if not ready:
                return False
        return True

    def close(self) -> None:
        """Put the signals back as they were. May be called twice."""
        if not self._old_handlers:
            return
        signal.set_wakeup_fd(self._old_wakeup_fd)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopped = True

    def _is_at_end(self, fd: int) -> bool:
        try:
            data = os.read(fd, 65536)
        except OSError:  # the other end of a socket was reset
            return True
        if data and fd != self._wake_read:
            self._on_input(data)
        return not data


def _is_pipe(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:  # closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def run_sampler(config: SamplerConfig) -> int:
    """Sample this machine until stdin ends or SIGTERM, and return the exit code.

    Raises:
        BadConfig: the endpoint is not an address.
    """
    clock = SystemClock()
    host = config.host_name
    try:
        emitter = Emitter(
            config.endpoint,
            run_id=host_run_id(host),
            source=source_of_host(host),
            spool_dir=config.spool_dir,
            close_timeout_s=config.close_timeout_s,
            options=EmitterOptions(flush_interval_s=FLUSH_INTERVAL_S),
        )
    except ValueError as exc:
        raise BadConfig(str(exc)) from exc
    report = reporter(host, emitter.emit)
    watch_list = WatchList()
    timeout_s = min(GUARD_TIMEOUT_MAX_S, 0.5 / config.hz)
    with (
        closing(emitter),
        closing(StopSignal(on_input=watch_list.feed)) as stop,
        ExitStack() as guards,
    ):
        trees = ProcessTreeProbe(clock, watch_list, report)
        guarded = [
            guards.enter_context(closing(GuardedProbe(probe, clock, timeout_s, first_s)))
            for probe, first_s in (
                *((probe, timeout_s) for probe in _probes(clock, host, emitter.emit, report)),
                (trees, timeout_s),
                (_gpus(clock, host, emitter.emit, report, trees), GUARD_FIRST_TIMEOUT_S),
            )
        ]
        hangs = HangWatch(guarded, guarded[-1], Conditions(host, emitter.emit, clock))
        sampler = Sampler(host, guarded, emitter.emit, clock, hangs.stuck_s, hangs.check)
        return sampler.run(config.hz, stop.wait, config.hang_restart_s)


def _probes(clock: Clock, host: str, emit: Emit, report: Report) -> list[Probe]:
    """Return the probes of this machine, without its GPUs and processes."""
    return [
        *host_probes(clock),
        CgroupProbe(clock),
        OomProbe(Conditions(host, emit, clock), CgroupProbe(clock).oom_kills),
        ClockProbe(clock, report),
    ]


def _gpus(
    clock: Clock, host: str, emit: Emit, report: Report, trees: ProcessTreeProbe
) -> NvmlProbe:
    processes = GpuProcesses(
        lambda: trees.owner_of, partial(is_host_namespace, Path("/proc")), report
    )
    # Conditions of its own: each belongs to the thread of its probe.
    return NvmlProbe(load_nvml(), clock, report, Conditions(host, emit, clock), processes)


def parse_config(argv: Sequence[str]) -> SamplerConfig:
    """Return the configuration that the command line asks for.

    Raises:
        BadConfig: a value that cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="python -m telemetry.hardware.sampler", description="Sample this machine."
    )
    parser.add_argument("--endpoint", required=True, help="where the sidecar listens")
    parser.add_argument("--host", default="", help="name of this machine (default: its own)")
    parser.add_argument("--hz", default="1", help="samples a second, 0.05 to 20 (default 1)")
    parser.add_argument("--spool-dir", type=Path, help="where to keep what cannot be sent")
    parser.add_argument("--close-timeout-s", default="5", help="longest wait at the end")
    options = parser.parse_args(argv)
    return SamplerConfig(
        endpoint=options.endpoint,
        host=options.host,
        hz=_number("hz", options.hz),
        spool_dir=options.spool_dir,
        close_timeout_s=_number("close_timeout_s", options.close_timeout_s),
    )


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadConfig(f"{name} is {text!r}: it must be a number") from None


def main(argv: Sequence[str]) -> int:
    """Run the sampler by its command line, and return the exit code."""
    configure_logs()
    try:
        return run_sampler(parse_config(argv))
    except BadConfig as exc:
        print(f"sampler: {exc}", file=sys.stderr)
        return EXIT_BAD_CONFIG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
