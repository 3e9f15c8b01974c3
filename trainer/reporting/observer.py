"""The observer, which turns facts and metrics of a run into events for the emitter.

In: facts of the run and numbers that are already on the host.
Out: events.
Never: raises into training, waits for telemetry, or touches a tensor.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shared.emitter import Emitter, EventSink, NullEmitter
from shared.events import (
    ConfigUpdated,
    Event,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
)
from shared.ids import source_of_rank
from shared.terminal import Say

Scalar = float | int | bool | str

VALUES_A_EVENT = 500
"""Metrics in one event at most. The limit is 1,024, and a large model's diagnostics by layer
are more than that."""


@dataclass(frozen=True)
class RunFacts:
    """Names and place of a run, as RunStarted tells them."""

    project: str
    name: str
    tags: Sequence[str]
    notes: str
    wandb_mode: str
    rank: int
    world_size: int
    gpu_uuids: Sequence[str]
    resumed_from_step: int | None


class Observer:
    """The sender of a run's events. Not thread-safe.

    watch is called after each event, to notice that the sidecar has ended.
    """

    def __init__(self, emitter: EventSink, watch: Callable[[], None] = lambda: None) -> None:
        self._emitter = emitter
        self._watch = watch
        self._is_failing = False

    def run_started(self, facts: RunFacts, config: Mapping[str, Any]) -> None:
        """Emit that the run begins, or resumes after facts.resumed_from_step."""
        self._emit(
            lambda: RunStarted(
                project=facts.project,
                name=facts.name,
                tags=list(facts.tags),
                notes=facts.notes,
                wandb_mode=facts.wandb_mode,
                config=dict(config),
                rank=facts.rank,
                world_size=facts.world_size,
                host=socket.gethostname(),
                pid=os.getpid(),
                process_start_ns=process_start_ns(),
                gpu_uuids=list(facts.gpu_uuids),
                resumed_from_step=facts.resumed_from_step,
            )
        )

    def config_updated(self, config: Mapping[str, Any]) -> None:
        """Emit parts of the run's config that were not known when it started."""
        self._emit(lambda: ConfigUpdated(config=dict(config)))

    def metrics(self, kind: str, step: int, values: Mapping[str, Scalar]) -> None:
        """Emit numbers of one optimizer step; kind is train, val, quant or custom."""
        names = list(values)
        for start in range(0, len(names), VALUES_A_EVENT):
            part = {name: values[name] for name in names[start : start + VALUES_A_EVENT]}
            self._emit(partial(MetricsLogged, kind=kind, step=step, values=part))

    def histogram(
        self, kind: str, step: int, name: str, edges: list[float], counts: list[float]
    ) -> None:
        """Emit a histogram: n counts between n + 1 ascending edges."""
        self._emit(
            lambda: HistogramLogged(kind=kind, step=step, name=name, edges=edges, counts=counts)
        )

    def message(self, text: str, level: str = "info") -> None:
        """Emit a line of text for people."""
        self._emit(lambda: MessageLogged(level=level, text=text))

    def finished(self, status: str, exit_code: int, summary: Mapping[str, Any]) -> None:
        """Emit the end of the run; status is finished, failed or preempted."""
        self._emit(lambda: RunFinished(status=status, exit_code=exit_code, summary=dict(summary)))

    def _emit(self, build: Callable[[], Event]) -> None:
        # The emitter promises not to raise; training outranks telemetry even where that
        # promise is broken, so this is the one place that catches everything.
        try:
            self._emitter.emit(build())
            self._watch()
        except Exception:
            if not self._is_failing:
                self._is_failing = True
                print("Telemetry failed; training goes on without it:", file=sys.stderr)
                traceback.print_exc()


def open_emitter(
    endpoint: str,
    run_id: str,
    rank: int,
    spool_dir: Path,
    close_timeout_s: float,
    say: Say,
) -> EventSink:
    """Open the emitter of this process, or one that discards events if that fails."""
    try:
        return Emitter(
            endpoint,
            run_id=run_id,
            source=source_of_rank(rank),
            spool_dir=spool_dir,
            close_timeout_s=close_timeout_s,
        )
    # Without a thread, a socket or memory for telemetry, training still goes on.
    except Exception as exc:
        say(f"The emitter cannot start ({exc}): nothing of this run is recorded.")
        return NullEmitter(run_id)


def process_start_ns() -> int:
    """Return the start of this process in ns of the wall clock; 0 if /proc does not tell.

    It is the time of boot plus the clock ticks from boot to the start, as in psutil's
    create_time().
    """
    try:
        # The name in field 2 may hold spaces and brackets; fields are counted after its end.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        lines = Path("/proc/stat").read_text().splitlines()
        boot_s = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
    return boot_s * 10**9 + ticks * 10**9 // os.sysconf("SC_CLK_TCK")
