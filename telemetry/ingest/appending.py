"""Appending: puts the events of a stream into the journals that they belong in.

In: admitted frames of open streams, in the order of their seqs.
Out: rows in the journals of runs, not synced yet; what is refused in quarantine.
Never: appends an event twice, or leaves a number of a stream without a row.

Not thread-safe: the journal thread owns it.
"""

from __future__ import annotations

from collections import Counter

from shared.events import Gap
from shared.wire import Message, Nack
from telemetry.ingest.admission import Admitted
from telemetry.ingest.host_run import HostRun
from telemetry.ingest.refusals import Refusals
from telemetry.ingest.run import Run
from telemetry.ingest.runs import Runs
from telemetry.ingest.streams import IncomingStream


class Appender:
    """Appends events, and moves their streams on."""

    def __init__(self, runs: Runs, host_run: HostRun, counts: Counter[str]) -> None:
        self.refusals = Refusals(counts)
        self._runs = runs
        self._host_run = host_run
        self._counts = counts

    def append(self, stream: IncomingStream, base_seq: int, admitted: Admitted) -> None:
        """Append events that begin at the stream's next_seq to every journal they belong in."""
        _, session, source = stream.id
        runs = self._destinations(stream)
        if not runs:
            self._counts["hardware_events_without_a_run_total"] += len(admitted.events)
        for run in runs:
            stream.unsynced.add(run.run_id)
            # A sampler's frame goes into several journals, and after a crash it is sent again
            # from the place of the shortest: the others have it already.
            if run.appended_seq(session, source) < base_seq:
                run.append(
                    session, source, base_seq, admitted.events, admitted.payload,
                    is_late=stream.is_late,
                )  # fmt: skip
        stream.next_seq = base_seq + len(admitted.events)
        stream.spoke_ns = stream.heard_ns
        for event in admitted.events:
            if isinstance(event, Gap):
                self.refusals.count_gap(event)

    def skip(self, stream: IncomingStream, first_seq: int, reason: str) -> None:
        """Go on at first_seq, and journal a Gap for the events before it (not for a sampler)."""
        if not stream.is_hardware:
            missing = first_seq - stream.next_seq
            run = self._runs.open(stream.id.run_id)
            gap = Gap(count=missing, by_kind={"unknown": missing}, reason=reason)
            run.say(gap)
            self.refusals.count_gap(gap)
            stream.unsynced.add(run.run_id)
        stream.next_seq = first_seq

    def refuse_frame(
        self, stream: IncomingStream, base_seq: int, payload: bytes, reason: str
    ) -> Nack:
        """Put a frame into quarantine, once, that is no array of events."""
        if stream.refused_at != stream.next_seq:
            stream.refused_at = stream.next_seq
            run_id, session, _ = stream.id
            run = self._runs.get(run_id)
            self.refusals.refuse_frame(run_id, run, session, base_seq, payload, reason)
        return Nack(stream.number, base_seq, reason)

    def refuse_events(
        self, stream: IncomingStream, base_seq: int, admitted: Admitted
    ) -> list[Message]:
        """Put the refused events of an appended frame into quarantine; return a NACK for each."""
        replies: list[Message] = []
        for position, raw, reason in admitted.rejected:
            seq = base_seq + position
            runs = [self._runs.open(run_id) for run_id in stream.unsynced]
            self.refusals.refuse_event(runs, stream.id.session, seq, raw)
            replies.append(Nack(stream.number, seq, reason))
        return replies

    def _destinations(self, stream: IncomingStream) -> list[Run]:
        """Return the runs that a frame belongs in.

        A sampler's frame goes to every active run, or to the host's own run if there is none.
        """
        if not stream.is_hardware:
            return [self._runs.open(stream.id.run_id)]
        return self._runs.active(self._host_run.run_id) or self._host_run.opened(self._runs)
