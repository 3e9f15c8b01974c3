"""The supervisor: starts, watches, restarts and ends one process for each sink and run.

In: the directories of runs, with their run.json and cursors.
Out: sink processes, and the state of each.
Never: reads a journal, or waits for a sink: one that hangs is killed.

Runs on a thread of its own. `snapshot`, `backlog` and `pause` may be used from any thread;
`end` belongs to the thread that called `start`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from shared.clock import Clock
from shared.programs import module_command
from telemetry.run_dir import CursorState, RunDir, RunState, sink_is_done
from telemetry.sinks.surroundings import sink_defaults
from telemetry.supervise.due_runs import DueRuns
from telemetry.supervise.sink_process import PAUSES, Pauses, SinkProcess
from telemetry.watch.facts import SinkStatus

log = logging.getLogger("telemetry.supervise.supervisor")

PROBE_NS: Final = 30_000_000_000
"""Time between two tries of one sink for ended runs, while it is unavailable."""


def sink_command(sink: str, run_dir: Path, per_core: bool = False) -> list[str]:
    """Return the command of the process that serves one sink of one run.

    The process gets a reduced environment. Variables of the sidecar's environment that are
    defaults for runs are therefore handed on as options. per_core: chart each processor core.
    """
    said = sink_defaults(os.environ).items()
    options = [f"--option={name}={value}" for name, value in sorted(said)]
    if per_core:
        options.append("--option=per_core=1")
    run = str(run_dir.absolute())
    return module_command("telemetry", "sink", sink, run, "--follow", *options)


class Supervisor:
    """Keeps the sinks of every run at work until each has all of it."""

    def __init__(
        self,
        runs_dir: Path,
        sinks: tuple[str, ...],
        clock: Clock,
        *,
        max_processes: int,
        sink_timeout_s: float,
        command: Callable[[str, Path], list[str]] = sink_command,
        pauses: Pauses = PAUSES,
        open_runs: Callable[[], Iterable[str]] = lambda: (),
    ) -> None:
        """Look at the runs below runs_dir from `start` on; open_runs names those of ingest."""
        self._runs_dir = runs_dir
        self._runs = DueRuns(runs_dir, open_runs)
        self._sinks = sinks
        self._clock = clock
        self._max_processes = max_processes
        self._sink_timeout_ns = int(sink_timeout_s * 1e9)
        self._command = command
        self._pauses = pauses
        self._sinks_of: dict[tuple[str, str], SinkProcess] = {}
        self._statuses: list[SinkStatus] = []
        self._backlog: set[tuple[str, str]] = set()
        self._probed_ns: dict[str, int] = {}
        """Monotonic time of the last try of a sink that was unavailable, by its name."""
        self._is_paused = False
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor")

    def start(self) -> None:
        self._thread.start()

    def pause(self, is_paused: bool) -> None:
        """Stop all sinks while the disk is full, in which some write corrupt files."""
        self._is_paused = is_paused

    def snapshot(self) -> list[SinkStatus]:
        """Return the state of each sink that is or was at work. May be called from any thread."""
        return self._statuses

    @property
    def backlog(self) -> set[tuple[str, str]]:
        """The (run, sink) pairs that do not have all of their run yet."""
        return self._backlog

    def end(self, timeout_s: float) -> None:
        """Let the sinks read to the end of what is on disk; after timeout_s, kill the rest.

        May be called twice, and without a start.
        """
        # 1. Stop the supervisor's thread; its polls go on here, with the children it had.
        deadline_ns = self._clock.monotonic_ns() + int(timeout_s * 1e9)
        self._is_ending.set()
        if self._thread.ident is not None:
            self._thread.join()
        # 2. Poll until no sink can do more, or the time is over.
        while self._clock.monotonic_ns() < deadline_ns and self._poll(is_draining=True):
            threading.Event().wait(0.05)
        # 3. Kill the rest: no sink outlives the sidecar, and the next one starts its own.
        for item in self._sinks_of.values():
            if item.is_at_work:
                item.kill("did not finish in time", self._clock.monotonic_ns())
        # 4. Find the backlog again, from the cursors as the sinks left them.
        self._look(everything=True)

    def _run(self) -> None:
        while not self._is_ending.wait(self._pauses.poll_s):
            try:
                self._poll(is_draining=False)
            except Exception:
                log.exception("supervisor failed; it goes on")

    def _poll(self, *, is_draining: bool) -> bool:
        """Look at all sinks once. Return True while there is work that can be done.

        Nothing here waits for a child, but a second for one that was killed.
        """
        # 1. Look which pairs have work. Before children are reaped: one that ends now has its
        #    last commit counted in the next poll, and is at worst started once for nothing.
        wanted, now = self._look(), self._clock.monotonic_ns()
        # 2. Hear, reap, kill, in this order: a child's last report says how it ended, and
        #    only a silent one that still lives counts as hanging.
        for item in list(self._sinks_of.values()):
            item.listen(now)
            item.reap(now)
            if item.state == "done":
                self._probed_ns.pop(item.sink, None)
            item.kill_if_hanging(self._sink_timeout_ns, now)
        # 3. Start what is due, runs that go on first: places freed above are used at once.
        for key, is_running in wanted:
            item = self._item(key)
            if not is_running and self._is_probed(item):
                continue
            self._start_if_due(item, is_draining=is_draining)
            # While draining, the sink of a run that goes on has no end to wait for: it is
            # asked to stop where the journal ends now.
            if is_draining and is_running:
                item.ask_to_stop()
        # 4. Kill all while paused. After the starts, so that none begun above is missed.
        if self._is_paused:
            for item in self._sinks_of.values():
                if item.is_at_work and not item.is_stopping:
                    item.kill("paused: no room on disk", now)
        # 5. Publish the states, for `inspect` and for other threads: last, so that they show
        #    this poll.
        for item in self._sinks_of.values():
            item.tell()
        self._statuses = [item.status for item in self._sinks_of.values()]
        return any(
            item.is_at_work or (is_draining and item.may_recover)
            for item in self._sinks_of.values()
        )

    def _look(self, *, everything: bool = False) -> list[tuple[tuple[str, str], bool]]:
        """Return the (run, sink) pairs with work to do, each with True if its run goes on.

        Runs that go on come first: there may be fewer processes than pairs. Publishes
        the backlog.
        """
        wanted: list[tuple[tuple[str, str], bool]] = []
        for name in self._runs.due(everything=everything):
            place = RunDir(self._runs_dir / name)
            run = self._runs.read(name, place.run_file, RunState)
            if run is None or not run.is_shown:
                continue
            has_work = not run.is_ended
            for sink in self._sinks:
                if not _is_for(sink, run):
                    continue
                cursor = self._runs.read(name, place.cursor(sink), CursorState)
                if not run.is_ended or not sink_is_done(cursor, run):
                    wanted.append(((name, sink), not run.is_ended))
                    has_work = True
                else:
                    has_work |= not self._forget_if_idle((name, sink))
            if not has_work:
                self._runs.settle(name)
        self._backlog = {key for key, _ in wanted}
        return sorted(wanted, key=lambda pair: not pair[1])

    def _item(self, key: tuple[str, str]) -> SinkProcess:
        if key not in self._sinks_of:
            self._sinks_of[key] = SinkProcess(self._runs_dir / key[0], key[1], self._pauses)
        return self._sinks_of[key]

    def _forget_if_idle(self, key: tuple[str, str]) -> bool:
        """Forget a sink that has all of its run; return False while its process is there."""
        item = self._sinks_of.get(key)
        if item is not None and item.is_at_work:
            return False
        self._sinks_of.pop(key, None)
        return True

    # --- one process

    def _start_if_due(self, item: SinkProcess, *, is_draining: bool) -> None:
        """Start a sink that is not at work, unless it must wait or will never work."""
        now = self._clock.monotonic_ns()
        at_work = sum(other.is_at_work for other in self._sinks_of.values())
        if (
            item.is_at_work
            or item.is_rejected
            or self._is_paused
            or now < item.not_before_ns
            or at_work >= self._max_processes
            # While draining, a sink that has ended once has done what it could.
            or (is_draining and item.started_ns and not item.may_recover)
        ):
            return
        try:
            item.start(self._command(item.sink, item.run_dir), now)
        except OSError as exc:
            # No process can be started, or this run's directory can't be used. Other runs
            # must go on.
            item.note_no_start(str(exc), now)
            return
        if item.failures:
            self._probed_ns[item.sink] = now

    def _is_probed(self, item: SinkProcess) -> bool:
        """Return True if another ended run has lately tried this sink, which is unavailable.

        One try serves all: hundreds of ended runs that each start a process to try a
        server that is away would keep this machine busy.
        """
        if item.state != "unavailable":
            return False
        since_ns = self._clock.monotonic_ns() - self._probed_ns.get(item.sink, -PROBE_NS)
        return since_ns < PROBE_NS


def _is_for(sink: str, run: RunState) -> bool:
    """Return True if a sink is to have this run now.

    A run without RunStarted may still get one, whose project and mode could not be applied
    to a W&B run that exists already: such a run goes to W&B when it has ended.
    """
    if sink == "wandb" and run.has_no_introduction and not run.is_ended:
        return False
    return run.wants(sink)
