"""The life of runs: which go on, which have ended, and which nobody will end any more.

In: the streams of all producers, and the time.
Out: runs that are ended, declared lost, or closed.
Never: ends a run with something in it that is not on disk.

Not thread-safe: the ingest thread owns it.
"""

from __future__ import annotations

from typing import Final

from shared.clock import Clock
from shared.events import LOST, Gap, RunFinished
from telemetry.hostrun import HostRun
from telemetry.runs import MAIN_SOURCE, Run, Runs
from telemetry.streams import IncomingStream, StreamKey

STREAM_OVER_NS: Final = 30_000_000_000
"""A stream that was silent for so long does not keep its run from ending."""


class Lifecycle:
    """Decides about once a second."""

    def __init__(
        self,
        runs: Runs,
        streams: dict[StreamKey, IncomingStream],
        dirty: set[str],
        host_run: HostRun,
        clock: Clock,
        lost_after_s: float,
    ) -> None:
        self.last_heard_ns: dict[str, int] = {}
        """When somebody last said something of a run whose streams are gone."""
        self._runs = runs
        self._streams = streams
        self._dirty = dirty
        self._host_run = host_run
        self._clock = clock
        self._lost_after_ns = int(lost_after_s * 1e9)

    def tick(self) -> None:
        """Notice who has gone silent; end the runs that are over. About once a second."""
        now = self._clock.monotonic_ns()
        for key, stream in list(self._streams.items()):
            if now - stream.heard_ns > max(self._lost_after_ns, 2 * STREAM_OVER_NS):
                del self._streams[key]
        for run in self._runs:
            if run.run_id != self._host_run.run_id:
                self._end_if_over(run, now)

    def declare_abandoned_lost(self) -> None:
        """Every producer is known to be gone: what has not finished never will."""
        for stream in self._streams.values():
            stream.is_finished = stream.is_finished or not stream.is_hardware
        now = self._clock.monotonic_ns()
        for run in self._runs:
            is_host = run.run_id == self._host_run.run_id
            if not run.is_ended and run.finish_status is None and not is_host:
                self._declare_lost(run, self._silent_ns(run, now))

    def _end_if_over(self, run: Run, now: int) -> None:
        if run.is_ended:
            self._release_if_idle(run)
            return
        streams = [s for s in self._streams.values() if s.run_id == run.run_id]
        silent_ns = self._silent_ns(run, now)
        # Who said that it ends need not say FIN. Another session of rank 0 has to, though:
        # one whose run was declared lost too early, or the rest of a former one.
        others_over = all(
            s.is_finished
            or (s.source == MAIN_SOURCE and s.session == run.finished_by)
            or now - s.heard_ns > STREAM_OVER_NS
            for s in streams
        )
        if run.finish_status is not None and others_over and run.run_id not in self._dirty:
            run.end()
        elif run.finish_status is None and silent_ns > self._lost_after_ns:
            self._declare_lost(run, silent_ns)

    def _silent_ns(self, run: Run, now: int) -> int:
        """Since when nobody has said anything of the run; since it was opened, at most."""
        heard = (s.heard_ns for s in self._streams.values() if s.run_id == run.run_id)
        last_ns = max(self.last_heard_ns.get(run.run_id, 0), *heard, 0) or now
        self.last_heard_ns[run.run_id] = last_ns
        return now - last_ns

    def _declare_lost(self, run: Run, silent_ns: int) -> None:
        """Say so in its journal; it ends when that is on disk."""
        if run.is_started:
            text = "the trainer went away without a word"
            run.say(Gap(count=0, reason=text, unknown_ms=silent_ns / 1e6))
            run.say(RunFinished(status=LOST))
            self._dirty.add(run.run_id)
        elif run.run_id not in self._dirty:
            run.end()

    def _release_if_idle(self, run: Run) -> None:
        if run.run_id not in self._dirty and not any(
            s.run_id == run.run_id and not s.is_finished for s in self._streams.values()
        ):
            self._runs.release(run)
            self.last_heard_ns.pop(run.run_id, None)
