"""Sampling: reads probes at a fixed rate, and emits their values.

In: probes, a clock, and a way to wait.
Out: one `MetricsLogged(kind="hardware")` a tick; a log line and a `MessageLogged` on each
change of state.
Never: drifts, catches up on ticks it missed, or lets one probe stop the others.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Final

from shared.clock import Clock
from shared.events import HARDWARE, Event, MessageLogged, MetricsLogged
from telemetry.hardware.probe import Probe, Report, Values

log = logging.getLogger(__name__)

EXIT_STOPPED: Final = 0
EXIT_PROBE_HANGS: Final = 75
"""EX_TEMPFAIL of sysexits.h: a new process may do better."""


class Sampler:
    """A loop that reads all probes at a fixed rate and emits their values. Not thread-safe.

    emit: must not wait. outstanding_s: returns how long a probe has not answered for which
    a new process may do better. after_reading: is called once a tick.
    """

    def __init__(
        self,
        host: str,
        probes: Sequence[Probe],
        emit: Callable[[Event], object],
        clock: Clock,
        outstanding_s: Callable[[], float] = lambda: 0.0,
        after_reading: Callable[[], None] = lambda: None,
    ) -> None:
        self._host = host
        self._probes = probes
        self._emit = emit
        self._clock = clock
        self._outstanding_s = outstanding_s
        self._after_reading = after_reading
        self._report = reporter(host, emit)
        self._failing: set[str] = set()
        self._skipped_ticks = 0

    def run(
        self, hz: float, wait: Callable[[float], bool], hang_restart_s: float = math.inf
    ) -> int:
        """Sample at start + n periods until told to stop, and return the exit code.

        wait: waits that many seconds or less, and returns True if it is time to stop.
        """
        start_ns = self._clock.monotonic_ns()
        tick = 0
        values = self._read_all()
        self._introduce(values)
        while True:
            values["sampler/skipped_ticks_total"] = self._skipped_ticks
            self._emit(MetricsLogged(kind=HARDWARE, step=None, values=values))
            if self._outstanding_s() > hang_restart_s:
                self._report("error", "the GPU driver does not answer: the sampler starts again")
                return EXIT_PROBE_HANGS
            now_ns = self._clock.monotonic_ns()
            following = next_tick(tick, start_ns, now_ns, hz)
            self._skipped_ticks += following - tick - 1
            tick = following
            if wait((tick_ns(tick, start_ns, hz) - now_ns) / 1e9):
                return EXIT_STOPPED
            values = self._read_all()

    def _introduce(self, values: Values) -> None:
        cpus = os.cpu_count() or 1
        gpus = sum(name.startswith("gpu/") and name.endswith("/uuid") for name in values)
        known = f"{gpus} GPUs" if not self._outstanding_s() else "GPUs not known yet"
        text = f"sampler started: host {self._host}, {cpus} CPUs, {known}"
        log.info("%s", text)
        self._emit(MessageLogged(level="info", text=text))

    def _read_all(self) -> Values:
        values: Values = {}
        for probe in self._probes:
            values.update(self._read(probe))
        self._after_reading()
        return values

    def _read(self, probe: Probe) -> Values:
        name = probe.name
        try:
            values = probe.read()
        except Exception as exc:  # of any kind: the other probes go on
            if name not in self._failing:
                self._failing.add(name)
                log.warning("probe=%s failed", name, exc_info=True)
                self._report("warning", f"probe {name} fails: {exc!r}; its values are left out")
            return {}
        if name in self._failing:
            self._failing.discard(name)
            self._report("info", f"probe {name} works again")
        return values


def reporter(host: str, emit: Callable[[Event], object]) -> Report:
    """Return a function that reports a change of state, in the log and in the run."""

    def report(level: str, text: str) -> None:
        log.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)
        emit(MessageLogged(level=level, text=f"{host}: {text}"))

    return report


def tick_ns(tick: int, start_ns: int, hz: float) -> int:
    """Return the time of a tick, counted from the start so that no rounding adds up."""
    return start_ns + round(tick * 1e9 / hz)


def next_tick(tick: int, start_ns: int, now_ns: int, hz: float) -> int:
    """Return the first tick after this one that is still to come; missed ones are skipped."""
    following = max(tick + 1, math.floor((now_ns - start_ns) * hz / 1e9))
    while tick_ns(following, start_ns, hz) <= now_ns:
        following += 1
    return following
