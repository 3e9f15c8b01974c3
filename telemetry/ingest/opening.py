"""Opening: opens the stream that a HELLO asks for, at its next sequence number.

In: HELLOs, each with its peer.
Out: streams, in the table.
Never: refuses a session because another one of its source is live: each is told apart.

Not thread-safe: the journal thread owns it.
"""

from __future__ import annotations

import logging

from shared.clock import Clock
from shared.events import MessageLogged
from shared.ids import SIDECAR, check_stream_id
from shared.wire import Hello
from telemetry.ingest.host_run import HostRun
from telemetry.ingest.limits import RunLimits
from telemetry.ingest.run import Run
from telemetry.ingest.runs import Runs
from telemetry.ingest.streams import OWN_STREAM, IncomingStream, StreamTable

log = logging.getLogger("telemetry.ingest.ingest")

RIVALS_TOLD_MAX = 10_000


class Opening:
    """Opens streams, and the runs that they need."""

    def __init__(
        self,
        runs: Runs,
        streams: StreamTable[IncomingStream],
        host_run: HostRun,
        limits: RunLimits,
        clock: Clock,
    ) -> None:
        self._runs = runs
        self._streams = streams
        self._host_run = host_run
        self._limits = limits
        self._clock = clock
        self._told_rivals: set[str] = set()
        """Runs for which two live main sessions were reported already."""

    def open(self, peer: bytes, hello: Hello, now: int) -> IncomingStream:
        """Open a stream.

        Raises:
            ValueError: this stream can never be opened.
            Wait, TooManyStreams: it can't be opened now.
            OSError, JournalLocked, JournalFull, JournalFault: its run can't be used.
        """
        # 1. Check the names before anything is made of them: run ids become directories.
        stream_id = check_stream_id(hello.stream_id)
        if stream_id.source == SIDECAR:
            raise ValueError("the source 'sidecar' is the service's own")
        self._streams.check_room(peer)
        is_late = hello.late or self._is_of_a_spool(peer, hello)
        stream = IncomingStream(
            peer, hello.stream, stream_id, is_late, next_seq=0, durable_seq=-1, heard_ns=now,
            spoke_ns=now,
        )  # fmt: skip
        # 2. Take over from the same producer on an older connection, or note a rival.
        for other in self._streams.of_run(stream_id.run_id):
            if other.id.source == stream_id.source:
                self._meet(stream, other)
        # 3. Find the place in the journals; add the stream only when that has succeeded.
        if stream.is_hardware:
            self._attach_hardware(stream)
        else:
            self._attach(stream)
        self._streams.add(stream)
        return stream

    def report_rivals(self, stream: IncomingStream) -> list[IncomingStream]:
        """Report a run with two live main sessions; return the streams that got a notice.

        Once for each run it is said in the log and in the journal, too.
        """
        rival, stream.rival = stream.rival, None
        if rival is None or rival.is_finished or self._streams.get(rival.key) is not rival:
            return []
        run_id = stream.id.run_id
        text = f"run {run_id} has two live sessions of {stream.id.source}: both are recorded"
        stream.notice = rival.notice = text
        if run_id not in self._told_rivals and len(self._told_rivals) <= RIVALS_TOLD_MAX:
            self._told_rivals.add(run_id)
            log.warning("%s", text)
            self._runs.open(run_id).say(MessageLogged(level="warning", text=text))
        return [stream, rival]

    def _is_of_a_spool(self, peer: bytes, hello: Hello) -> bool:
        """Return True for a spool sent by an older emitter, which does not mark it as late."""
        own = self._streams.get((peer, OWN_STREAM))
        return (
            own is not None
            and hello.stream > OWN_STREAM
            and (own.id.run_id, own.id.source) == (hello.run_id, hello.source)
            and own.id.session != hello.session
        )

    def _meet(self, stream: IncomingStream, other: IncomingStream) -> None:
        """Decide between two streams of one source of a run."""
        if other.id.session == stream.id.session:
            self._streams.remove(other.key)  # the same producer on a new connection
            stream.next_seq = other.next_seq
            stream.rival, stream.notice = other.rival, other.notice
            stream.spoke_ns = other.spoke_ns
        elif stream.is_main and other.is_main and not other.is_finished:
            # Reported later, when both were heard: after a crash the former session is silent
            # for ever, and there is nothing to report.
            other.rival = stream

    def _attach(self, stream: IncomingStream) -> None:
        """Set the sequence numbers of a producer's stream from the journal of its run."""
        gone_seq = self._removed_seq(stream)
        run = self._opened_run(stream)
        place = stream.id.session, stream.id.source
        appended = run.appended_seq(*place)
        stream.next_seq = max(stream.next_seq, appended + 1, gone_seq + 1)
        stream.durable_seq = max(run.durable_seq(*place), gone_seq)
        if run.is_unsynced:
            stream.unsynced.add(run.run_id)
        is_new_session = appended < 0 and stream.is_main
        if is_new_session and (run.is_ended or run.finish_status is not None):
            run.reopen()
        run.heard_ns = stream.heard_ns

    def _removed_seq(self, stream: IncomingStream) -> int:
        """Seq of the last event that a removed run had of this stream, -1 for none.

        Raises:
            ValueError: late events of a run that was removed have no place any more. They
                stay in their spool.
        """
        tombstone = self._runs.tombstone(stream.id.run_id)
        if tombstone is None:
            return -1
        entry = tombstone.entry(stream.id.session, stream.id.source)
        if stream.is_late and (entry is not None or not self._runs.has(stream.id.run_id)):
            raise ValueError(
                f"run {stream.id.run_id} was removed ({tombstone.reason}): "
                "what a spool still has of it is not taken"
            )
        # A session that outlived its run goes on in a new journal; nothing of it is missing.
        return -1 if entry is None else entry.durable_seq

    def _opened_run(self, stream: IncomingStream) -> Run:
        """Return the run of a stream, opened if the limits allow it.

        Raises:
            Wait: the limits do not allow it now.
        """
        if (run := self._runs.get(stream.id.run_id)) is not None:
            return run
        is_new = not self._runs.has(stream.id.run_id)
        self._limits.check(stream.peer, is_new=is_new, open_runs=len(self._runs))
        began_ns = self._clock.monotonic_ns()
        try:
            return self._runs.open(stream.id.run_id)
        finally:
            self._limits.spend_time(self._clock.monotonic_ns() - began_ns)

    def _attach_hardware(self, stream: IncomingStream) -> None:
        """Set the sequence numbers of a sampler's stream from the journal that has least of it.

        A crash may have come when some were synced and others were not. What is on disk is
        told apart from what was appended: the disk may be full meanwhile.
        """
        runs = self._runs.active(self._host_run.run_id)
        if not runs and (host_run := self._runs.get(self._host_run.run_id)) is not None:
            runs = [host_run]
        place = stream.id.session, stream.id.source
        having = [run for run in runs if run.appended_seq(*place) >= 0]
        least = min((run.appended_seq(*place) for run in having), default=-1)
        stream.next_seq = max(stream.next_seq, least + 1)
        stream.durable_seq = min((run.durable_seq(*place) for run in having), default=-1)
        stream.unsynced = set(self._runs.unsynced)
