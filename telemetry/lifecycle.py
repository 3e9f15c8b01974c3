"""The life of runs: which go on, which have ended, and which nobody will end any more.

In: the streams of all producers, and the time.
Out: runs that are ended, declared lost, or closed.
Never: ends a run with something in it that is not on disk.

Not thread-safe: the ingest thread owns it.
"""

from __future__ import annotations

from typing import Final

from shared.clock import Clock
from shared.events import FAILED, FINISHED, LOST, Gap, RunFinished
from telemetry.exits import Exits
from telemetry.hostrun import HostRun
from telemetry.runs import Run, Runs
from telemetry.sessions import is_worker
from telemetry.streams import STREAM_OVER_NS, IncomingStream, StreamTable

EMPTY_KEPT_NS: Final = 60_000_000_000
"""A run without a row is kept for so long after anybody spoke of it."""

EXITED_SILENT_NS: Final = 6_000_000_000
"""A run whose command has ended, and of which nothing was heard for so long,
longer than from one keepalive to the next, is over."""


class Lifecycle:
    """Decides about once a second."""

    def __init__(
        self,
        runs: Runs,
        streams: StreamTable,
        dirty: set[str],
        host_run: HostRun,
        clock: Clock,
        lost_after_s: float,
    ) -> None:
        self._runs = runs
        self._streams = streams
        self._dirty = dirty
        self._host_run = host_run
        self._clock = clock
        self._lost_after_ns = int(lost_after_s * 1e9)
        self._exits = Exits(runs.directory.parent)

    def tick(self) -> None:
        """Notice who has gone silent; end the runs that are over. About once a second."""
        now = self._clock.monotonic_ns()
        self._exits.look()
        for stream in self._streams:
            if now - stream.heard_ns > max(self._lost_after_ns, 2 * STREAM_OVER_NS):
                self._streams.remove(stream.key)
        for run in self._runs:
            if run.run_id != self._host_run.run_id:
                self._end_if_over(run, now)

    def declare_abandoned(self, exit_code: int | None) -> None:
        """End what has not finished, since every producer is known to be gone.

        It ends with the exit code of its own command; else with this one, or as lost where
        nobody knows it. A run of another command is none of this one's.
        """
        self._exits.look()
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
        # A session that said its last word need not say FIN; all others have to, or fall silent.
        others_over = all(
            s.is_over(now) or (s.is_main and run.has_finished(s.session)) for s in streams
        )
        if run.finish_status is not None and others_over and run.run_id not in self._dirty:
            # Nobody will introduce it any more.
            run.show_if_unannounced(is_over=True)
            run.end()
        elif run.finish_status is None:
            code = self._exits.code_of(run.launch_id)
            # A command that has ended may have left a process that goes on.
            is_over = self._is_told(run) or silent_ns > EXITED_SILENT_NS
            if (code is not None and is_over) or silent_ns > self._lost_after_ns:
                self._declare_over(run, silent_ns, code)
            elif run.is_empty and silent_ns > EMPTY_KEPT_NS and run.run_id not in self._dirty:
                # Opened by a HELLO that nothing followed.
                self._forget_streams(streams)
                self._runs.discard(run)

    def _silent_ns(self, run: Run, now: int) -> int:
        """Since when nobody has said anything of the run; since it was opened, at most."""
        # A worker's keepalive says nothing of the run: its parent may be gone.
        heard = (
            s.spoke_ns if is_worker(s.source) else s.heard_ns
            for s in self._streams.of_run(run.run_id)
        )
        run.heard_ns = max(run.heard_ns, *heard, 0) or now
        return now - run.heard_ns

    def _declare_over(self, run: Run, silent_ns: int, exit_code: int | None = None) -> None:
        """Say in its journal how a run ended that did not say so; it ends with that on disk."""
        if run.show_if_unannounced(is_over=True):
            if not self._is_told(run):
                text = "the trainer went away without a word"
                run.say(Gap(count=0, reason=text, unknown_ms=silent_ns / 1e6))
            run.say(_last_word(exit_code))
            self._dirty.add(run.run_id)
        elif run.run_id not in self._dirty:
            run.end()

    def _is_told(self, run: Run) -> bool:
        """True if every producer of the run has closed its stream: nothing is unknown then."""
        streams = [s for s in self._streams.of_run(run.run_id) if not s.is_hardware]
        return bool(streams) and all(s.is_finished for s in streams)

    def _release_if_idle(self, run: Run) -> None:
        """Close a run that has ended, whoever is still connected: it takes no descriptor,
        and is opened again by the next event."""
        if run.run_id not in self._dirty:
            self._runs.release(run)

    def _forget_streams(self, streams: list[IncomingStream]) -> None:
        for stream in streams:
            self._streams.remove(stream.key)


def _last_word(exit_code: int | None) -> RunFinished:
    """What the sidecar says of a run in its producer's place."""
    if exit_code is None:
        return RunFinished(status=LOST)
    return RunFinished(status=FINISHED if exit_code == 0 else FAILED, exit_code=exit_code)
