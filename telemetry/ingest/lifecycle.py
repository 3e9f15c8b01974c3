"""The lifecycle of runs: ends those that are over, and declares abandoned ones lost.

In: the streams of all producers, and the time.
Out: runs that are ended, declared lost, or closed.
Never: ends a run with something in it that is not on disk.

States and their order, for a run that is open:

    its newest main session has finished, other streams are over, all on disk  -> ended
    its command's exit code is known, and its streams are closed or silent     -> RunFinished
    silent for lost_after_s                                                    -> RunFinished (lost)
    opened by a HELLO, without a row, silent for EMPTY_KEPT_NS                 -> removed
    ended, all on disk                                                         -> closed

Not thread-safe: the journal thread owns it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from shared.clock import Clock
from shared.events import FAILED, FINISHED, LOST, Event, Gap, RunFinished
from telemetry.exits import EXIT_WAIT_S, Ends, Exits
from telemetry.ingest.death import end_of_death, events_of, events_of_ending, has_died
from telemetry.ingest.host_run import HostRun
from telemetry.ingest.run import Run
from telemetry.ingest.runs import Runs
from telemetry.ingest.streams import STREAM_OVER_NS, IncomingStream, StreamTable
from telemetry.sessions import is_worker

EMPTY_KEPT_NS: Final = 60_000_000_000
"""Silence after which a run without a row is removed."""

EXITED_SILENT_NS: Final = 6_000_000_000
"""Silence after which a run whose command has ended is over; longer than the time from
one keepalive to the next."""


TOLD_NS: Final = 5_000_000_000
"""Longest wait for the report on the end of a command whose run has failed."""


class Lifecycle:
    """Decides once a second which runs are over. Not thread-safe."""

    def __init__(
        self,
        runs: Runs,
        streams: StreamTable[IncomingStream],
        host_run: HostRun,
        clock: Clock,
        lost_after_s: float,
        ends: Ends,
    ) -> None:
        self._runs = runs
        self._streams = streams
        self._host_run = host_run
        self._clock = clock
        self._lost_after_ns = int(lost_after_s * 1e9)
        self._exits = Exits(runs.directory.parent)
        self._ends = ends
        self._failed_ns: dict[str, int] = {}
        """When a launched run was first seen to have failed, whose command's end is not told."""
        self._is_patient = True

    def note_starts(self) -> None:
        """Hold the processes of runs that have begun: one may end before the next second."""
        self._ends.look(self._runs)

    def tick(self) -> None:
        """Forget streams that have gone silent, and end the runs that are over."""
        now = self._clock.monotonic_ns()
        # 1. Exit codes first: a run whose command has ended gets them, and not "lost".
        self._exits.look()
        self.note_starts()
        # 2. Forget streams that are silent for good, so that they keep no run from ending.
        for stream in self._streams:
            if now - stream.heard_ns > max(self._lost_after_ns, 2 * STREAM_OVER_NS):
                self._streams.remove(stream.key)
        # 3. Decide about each run; the host's own run ends only with the sidecar.
        for run in self._runs:
            if run.run_id != self._host_run.run_id:
                self._end_if_over(run, now)

    def declare_abandoned(self, exit_code: int | None) -> None:
        """End every run that has not finished: its producers are known to be gone.

        A run with a launch id gets the exit code of that launch, any other this one. Without
        an exit code it ends as lost.
        """
        self._exits.look()
        # The sidecar is ending: no report comes any more.
        self._is_patient = False
        now = self._clock.monotonic_ns()
        for run in self._runs:
            is_host = run.run_id == self._host_run.run_id
            if not run.is_ended and run.finish_status is None and not is_host:
                code = self._exits.code_of(run.launch_id) if run.launch_id else exit_code
                self._declare_over(run, self._silent_ns(run, now), code)
        for stream in self._streams:
            stream.is_finished = stream.is_finished or not stream.is_hardware

    def _end_if_over(self, run: Run, now: int) -> None:
        if run.is_ended:
            self._release_if_idle(run)
            return
        run.show_if_unannounced()
        streams = self._streams.of_run(run.run_id)
        silent_ns = self._silent_ns(run, now)
        # A main session whose RunFinished came is over without FIN; all other streams must
        # have sent FIN, or be silent.
        others_over = all(
            s.is_over(now) or (s.is_main and run.has_finished(s.id.session)) for s in streams
        )
        if run.finish_status is None and has_died(run.alerts):
            run.say(end_of_death(run.alerts, self._clock.wall_ns() / 1e9))
        if run.finish_status == FAILED and self._report_death(run, now):
            return
        if run.finish_status is not None and others_over and not run.is_unsynced:
            # No RunStarted will come any more: sinks show it under its id.
            run.show_if_unannounced(is_over=True)
            run.end()
        elif run.finish_status is None:
            code = self._exits.code_of(run.launch_id)
            # A command that has ended may have left a process that goes on.
            is_over = self._is_told(run) or silent_ns > EXITED_SILENT_NS
            if (code is not None and is_over) or silent_ns > self._lost_after_ns:
                self._declare_over(run, silent_ns, code)
            elif run.is_empty and silent_ns > EMPTY_KEPT_NS and not run.is_unsynced:
                # Opened by a HELLO that nothing followed.
                self._forget_streams(streams)
                self._runs.discard(run)

    def _report_death(self, run: Run, now: int) -> bool:
        """Say what a launched trainer died of; True while the run must wait for that.

        Its parent can tell only after the trainer's own last word.
        """
        if not run.launch_id or has_died(run.alerts):
            return False
        if (report := self._exits.report_of(run.launch_id)) is not None:
            self._failed_ns.pop(run.run_id, None)
            if report.exit_code:
                for event in events_of(report):
                    run.say(event)
            return False
        since_ns = self._failed_ns.setdefault(run.run_id, now)
        if self._is_patient and now - since_ns < TOLD_NS:
            return True
        self._failed_ns.pop(run.run_id, None)
        return False

    def _silent_ns(self, run: Run, now: int) -> int:
        """Return the time in ns since anything was heard of the run, or since it was opened."""
        # Of a worker only events count, not keepalives: its parent may be gone.
        heard = (
            s.spoke_ns if is_worker(s.id.source) else s.heard_ns
            for s in self._streams.of_run(run.run_id)
        )
        run.heard_ns = max(run.heard_ns, *heard, 0) or now
        return now - run.heard_ns

    def _declare_over(self, run: Run, silent_ns: int, exit_code: int | None = None) -> None:
        """Journal a RunFinished for a run whose producer sent none; end it when that is synced."""
        if run.show_if_unannounced(is_over=True):
            if not self._is_told(run):
                text = "the trainer went away without a word"
                run.say(Gap(count=0, reason=text, unknown_ms=silent_ns / 1e6))
            run.say(_last_word(self._say_cause(run, exit_code)))
        elif not run.is_unsynced:
            run.end()

    def _say_cause(self, run: Run, exit_code: int | None) -> int | None:
        """Say what the trainer died of, and return its exit code, None if nobody knows it."""
        report = self._exits.report_of(run.launch_id)
        ending = None
        if report is None and exit_code is None:
            ending = self._ends.ending_of(run, 0.0 if self._is_patient else EXIT_WAIT_S)
        events: Iterator[Event] = iter(())
        if report is not None and report.exit_code:
            events = events_of(report)
        elif ending is not None:
            events, exit_code = events_of_ending(ending), ending.exit_code
        if not has_died(run.alerts):
            for event in events:
                run.say(event)
        return exit_code

    def _is_told(self, run: Run) -> bool:
        """Return True if every producer of the run has closed its stream: no event is missing."""
        streams = [s for s in self._streams.of_run(run.run_id) if not s.is_hardware]
        return bool(streams) and all(s.is_finished for s in streams)

    def _release_if_idle(self, run: Run) -> None:
        """Close a run that has ended, to free its file descriptors.

        Peers may still be connected: the next event opens it again.
        """
        if not run.is_unsynced:
            self._runs.release(run)

    def _forget_streams(self, streams: list[IncomingStream]) -> None:
        for stream in streams:
            self._streams.remove(stream.key)


def _last_word(exit_code: int | None) -> RunFinished:
    """Return the RunFinished that the sidecar writes in place of a run's producer."""
    if exit_code is None:
        return RunFinished(status=LOST)
    return RunFinished(status=FINISHED if exit_code == 0 else FAILED, exit_code=exit_code)
