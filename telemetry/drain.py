"""Drain: ends the sidecar in the order of the data, within the grace time.

In: the parts of a sidecar that was asked to stop.
Out: every event on disk and acknowledged, and the sinks as far as the time allows.
Never: takes longer than the grace time, but for what a disk needs.

Runs on the journal thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from shared.clock import Clock
from telemetry.config import ServeConfig
from telemetry.errors import EXIT_BACKLOG, EXIT_OK
from telemetry.ingest.host_run import HostRun
from telemetry.ingest.ingest import Ingest
from telemetry.ingest.orphan_spools import SpoolCarrier
from telemetry.ingest.runs import Runs
from telemetry.journal_loop import JournalLoop
from telemetry.summary import Commands, print_summary
from telemetry.supervise.sampler_process import SamplerProcess
from telemetry.supervise.supervisor import Supervisor

log = logging.getLogger("telemetry.service")

SETTLE_S: Final = 0.3
"""After the last producer is gone: what is still in the socket arrives within this."""

LAST_WORDS_SHARE: Final = 0.5
"""Share of the grace time in which trainers may still send their last events."""

SHOWN_S: Final = 1.0
"""A step that takes longer is shown: it is what a shutdown waited for."""


@dataclass
class Producers:
    """The producers of the runs, as far as the process that started the sidecar has told."""

    are_gone: bool = False
    exit_code: int | None = None
    """Exit code of the command that made the runs."""


class Grace:
    """The grace time of one shutdown, which begins now."""

    def __init__(self, clock: Clock, grace_s: float) -> None:
        self._clock, self._grace_s = clock, grace_s
        self._began_ns = clock.monotonic_ns()

    @property
    def spent_s(self) -> float:
        return (self._clock.monotonic_ns() - self._began_ns) / 1e9

    def left_s(self, share: float = 1.0) -> float:
        """Return the time left of a share of the grace time, 0 if it is over."""
        return max(0.0, self._grace_s * share - self.spent_s)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Log one step of the shutdown: as information if it took long, else for debugging."""
        began_s = self.spent_s
        yield
        took_s = self.spent_s - began_s
        level = logging.INFO if took_s > SHOWN_S else logging.DEBUG
        log.log(level, "draining: %s took %.1f s", what, took_s)


@dataclass(frozen=True)
class Parts:
    """The parts of the sidecar that have something to finish."""

    loop: JournalLoop
    ingest: Ingest
    runs: Runs
    host_run: HostRun
    sampler: SamplerProcess
    carrier: SpoolCarrier
    supervisor: Supervisor


class Drain:
    """The end of one sidecar."""

    def __init__(
        self,
        config: ServeConfig,
        clock: Clock,
        parts: Parts,
        producers: Producers,
        tick: Callable[[], None],
    ) -> None:
        self._config, self._clock, self._producers, self._tick = config, clock, producers, tick
        self._parts = parts

    def run(self) -> int:
        """Drain the sidecar in the order of the data, within the grace time.

        Returns the exit code of `serve`: EXIT_BACKLOG where a sink lacks rows of a run that
        has ended.
        """
        grace = Grace(self._clock, self._config.drain_grace_s)
        # First, ask the producers of our own to finish: they need time to send their last
        # events, and the next step takes those in.
        with grace.step("asking the sampler and the spools for their last events"):
            self._parts.sampler.ask_to_end()
            self._parts.carrier.look_now()
        with grace.step("taking in last events"):
            self._take_in_last_words(grace)
        # From here on nothing new may come from those producers.
        with grace.step("ending the sampler"):
            self._parts.carrier.close()
            self._parts.sampler.end()
        # After all events of their producers: a run whose producers are known to be gone gets
        # their exit code, the host's own run its end.
        with grace.step("writing the last events of runs"):
            if self._producers.are_gone:
                self._parts.ingest.declare_abandoned(self._producers.exit_code)
            self._parts.host_run.finish(self._parts.runs)
        # The poll syncs the journals and sends the last acknowledgements, and the tick ends
        # the runs whose last event it synced.
        with grace.step("ending runs"):
            self._parts.ingest.tick()
            self._parts.loop.poll()
            self._tick()
        # After the last sync: sinks read only what is on disk, and close a run in their
        # service only where run.json says that it has ended.
        with grace.step("finishing the sinks"):
            self._parts.supervisor.end(grace.left_s())
        # Last, when it is known what a sink still lacks.
        return EXIT_BACKLOG if self._reported_backlog() else EXIT_OK

    def _take_in_last_words(self, grace: Grace) -> None:
        """Go on taking in while a trainer or a spool still has events.

        At least for what is in the socket already, and at most for half of the grace time: the
        other half is the sinks'.
        """
        settle_s = min(SETTLE_S, self._config.drain_grace_s / 4)
        while True:
            self._parts.loop.poll()
            has_words = self._parts.ingest.has_live_trainers and not self._producers.are_gone
            is_waited_for = has_words or not self._parts.carrier.is_idle
            if grace.spent_s >= settle_s and not (is_waited_for and grace.left_s(LAST_WORDS_SHARE)):
                return

    def _reported_backlog(self) -> set[tuple[str, str]]:
        """Print the summary; return the (run, sink) pairs that lack rows of a run that has ended.

        Runs that go on are not backlog: their trainers are alive, and a later sidecar
        continues them.
        """
        told_of = self._parts.runs.told_of
        going_on = {run.run_id for run in self._parts.runs if not run.is_ended}
        ended = told_of - going_on
        backlog = {pair for pair in self._parts.supervisor.backlog if pair[0] in ended}
        commands = Commands(self._config.command_form, self._config.tensorboard_url)
        print_summary(self._parts.runs.directory, sorted(told_of), backlog, commands)
        return backlog
