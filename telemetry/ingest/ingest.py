"""Ingest: appends the events of emitters to journals, and acknowledges those on disk.

In: messages of the wire, each with the peer it came from.
Out: the messages to answer with.
Never: acknowledges what is not on disk, or touches a socket: `gateway` does that.

The numbers of one stream only grow, and keep this order:

    durable_seq < next_seq    events up to durable_seq are on disk and acknowledged;
                              those before next_seq are appended to the journal

Not thread-safe: the journal thread owns it, and every run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from shared.clock import Clock
from shared.events import DecodeError, RunStarted
from shared.wire import WHOLE_STREAM, Ack, Data, Fin, FinAck, Hello, Message, Nack, Welcome
from telemetry.exits import Ends
from telemetry.ingest.admission import admit
from telemetry.ingest.appending import Appender
from telemetry.ingest.handler import Handler, Reply, unknown_stream
from telemetry.ingest.host_run import HostRun
from telemetry.ingest.inbox import CREDIT_MAX_BYTES, CREDITS_BYTES
from telemetry.ingest.lifecycle import Lifecycle
from telemetry.ingest.limits import RunLimits, Wait
from telemetry.ingest.opening import Opening
from telemetry.ingest.runs import Runs
from telemetry.ingest.streams import IncomingStream, StreamKey, StreamTable, TooManyStreams
from telemetry.journal.journal_lock import JournalLocked
from telemetry.journal.writer import JournalFull

log = logging.getLogger("telemetry.ingest.ingest")

ASK_AGAIN_NS: Final = 500_000_000
OPEN_RUNS_MAX: Final = 4_000
LOST: Final = "lost on the way"
REFUSED: Final = "rejected: not a frame of events"


class Ingest(Handler):
    """The streams of all peers, and the journals that they write. Not thread-safe."""

    def __init__(
        self,
        runs: Runs,
        clock: Clock,
        host_run: HostRun,
        lost_after_s: float,
        open_runs_max: int = OPEN_RUNS_MAX,
        streams: StreamTable[IncomingStream] | None = None,
        ends: Ends | None = None,
    ) -> None:
        """Take messages for these runs. streams: a table with bounds other than the usual."""
        super().__init__()
        self.runs = runs
        self.streams = StreamTable() if streams is None else streams
        self.has_room = True
        """True while enough of the disk is free; the service sets it once a second."""
        self.is_full = False
        """True if the last sync found no room on disk."""
        self.limits = RunLimits(clock, open_runs_max)
        self._clock = clock
        self._news: dict[StreamKey, None] = {}
        """Streams that the next commit may have an answer for, in their order."""
        self._appender = Appender(runs, host_run, self.counts)
        self._opening = Opening(runs, self.streams, host_run, self.limits, clock)
        ends = ends or Ends()
        self._lifecycle = Lifecycle(runs, self.streams, host_run, clock, lost_after_s, ends)

    @property
    def gaps(self) -> dict[tuple[str, str], int]:
        """Events that are missing, by kind and reason."""
        return self._appender.refusals.gaps

    @property
    def pending_bytes(self) -> int:
        """Bytes received and not synced."""
        unsynced = (self.runs.get(run_id) for run_id in self.runs.unsynced)
        return sum(run.writer.pending_bytes for run in unsynced if run is not None)

    @property
    def is_writable(self) -> bool:
        """True if received events can be made durable now."""
        return self.has_room and not self.is_full

    @property
    def has_live_trainers(self) -> bool:
        """True if a producer, other than a sampler, was heard of lately and has not ended."""
        now = self._clock.monotonic_ns()
        return any(not s.is_hardware and s.is_live(now) for s in self.streams)

    @property
    def credit_bytes(self) -> int:
        """Bytes that each stream may have unacknowledged; all together fit into the inbox."""
        if not self.is_writable:
            return 0
        return min(CREDIT_MAX_BYTES, CREDITS_BYTES // max(1, len(self.streams)))

    def hear(self, heard: Mapping[StreamKey, int]) -> None:
        """Note when streams were last heard of by the reading thread, which answered them itself.

        heard: monotonic time in ns, by stream.
        """
        for key, at_ns in heard.items():
            if (stream := self.streams.get(key)) is not None:
                stream.heard_ns = max(stream.heard_ns, at_ns)
                self._tell_rivals(stream)

    def commit(self) -> list[Reply]:
        """Make what was received durable, and return the acknowledgements for it.

        Raises:
            JournalFault: a disk failed; nothing more can be promised here.
        """
        # 1. Sync. A run without room on disk stays unsynced, and holds back only its own
        #    streams.
        failed = self._sync()
        # 2. Answer the streams that have news and whose every journal is on disk. The others
        #    keep their news for the next commit.
        replies: list[Reply] = []
        for key in list(self._news):
            stream = self.streams.get(key)
            if stream is None:
                del self._news[key]
            elif not stream.unsynced & failed:
                del self._news[key]
                replies += [(stream.peer, answer) for answer in self._settled(stream)]
        return replies

    def tick(self) -> None:
        """Notice streams that have gone silent, and end the runs that are over. Once a second."""
        self._lifecycle.tick()

    def declare_abandoned(self, exit_code: int | None = None) -> None:
        """End every run whose producers have not finished it: they are known to be gone.

        Runs get this exit code, or end as lost where it is None.
        """
        self._lifecycle.declare_abandoned(exit_code)

    def _settled(self, stream: IncomingStream) -> list[Message]:
        """Return the answers for a stream all of whose appended events are on disk."""
        # 1. ACK up to the last appended event; also without progress, to carry a notice.
        stream.unsynced.clear()
        answers: list[Message] = []
        if stream.durable_seq < stream.next_seq - 1 or stream.notice:
            stream.durable_seq = stream.next_seq - 1
            answers.append(self._ack(stream))
        # 2. FIN_ACK after the ACK: the producer then forgets its stream and may exit. The
        #    run may end only once this is noted.
        if stream.fin_seq is not None and stream.durable_seq + 1 >= stream.fin_seq:
            stream.is_finished, stream.fin_seq = True, None
            if (run := self.runs.get(stream.id.run_id)) is not None:
                run.end_stream(stream.id.session, stream.id.source)
            answers.append(FinAck(stream.number))
        return answers

    # --- opening a stream

    def _on_hello(self, peer: bytes, hello: Hello) -> list[Message]:
        """Open a stream, or find it again, and answer with its place."""
        now = self._clock.monotonic_ns()
        stream = self.streams.get((peer, hello.stream))
        try:
            # 1. Open, unless this HELLO repeats one: its WELCOME may have been lost.
            if stream is None or not stream.is_asked_for_by(hello):
                stream = self._opening.open(peer, hello, now)
            stream.heard_ns = now
            stream.is_finished = False
            self._tell_rivals(stream)
            # 2. Step over events that the producer has no more, with a Gap in the journal.
            self._skip_missing(stream, hello.first_seq, LOST)
        except (Wait, TooManyStreams) as exc:
            self.counts["streams_told_to_wait_total"] += 1
            return [Nack(hello.stream, WHOLE_STREAM, str(exc)[:200])]
        except (ValueError, OSError, JournalLocked, JournalFull) as exc:
            self._appender.refusals.refuse_stream(str(exc))
            return [Nack(hello.stream, WHOLE_STREAM, str(exc)[:200])]
        # 3. Answer, and look at the stream in the next commit: after a reconnect it may have
        #    taken over events whose sync is still to come.
        self._news[stream.key] = None
        answers: list[Message] = [self._welcome(stream)]
        if stream.durable_seq >= 0:
            # A WELCOME says what was received; this, how much of it is on disk already.
            answers.append(self._ack(stream))
        return answers

    def _tell_rivals(self, stream: IncomingStream) -> None:
        """Tell both producers, with their next answers, that they write into one run."""
        if stream.rival is not None:
            for told in self._opening.report_rivals(stream):
                self._news[told.key] = None

    def _skip_missing(self, stream: IncomingStream, first_seq: int, reason: str) -> None:
        """Go on at first_seq where events before it are missing."""
        if first_seq > stream.next_seq:
            self._appender.skip(stream, first_seq, reason)
            self._news[stream.key] = None

    # --- frames

    def _on_data(self, peer: bytes, data: Data) -> list[Message]:
        """Append a frame to its journals. No ACK yet: that is `commit`'s, after the sync."""
        # 1. Find the stream. Its producer opens a stream anew when told that it is unknown.
        stream = self.streams.get((peer, data.stream))
        if stream is None:
            return unknown_stream(data.stream)
        now = stream.heard_ns = self._clock.monotonic_ns()
        self._tell_rivals(stream)
        # 2. Take no frame behind a hole: the journal has the events of a stream in order.
        if data.base_seq > stream.next_seq and not self._skip_refused(stream, data.base_seq):
            return self._ask_again(stream, now)
        payload = bytes(data.events)
        # 3. Check each event. Before anything is appended, so that a bad frame leaves no part.
        try:
            admitted = admit(payload, self._clock.wall_ns(), now)
        except DecodeError as exc:
            return [self._appender.refuse_frame(stream, data.base_seq, payload, str(exc)[:200])]
        # 4. Leave out events that were appended before: a repeated frame is harmless.
        if data.base_seq + len(admitted.events) <= stream.next_seq:
            return [self._ack(stream)]  # perhaps the first answer was lost
        base_seq = max(data.base_seq, stream.next_seq)
        if data.base_seq < base_seq:
            # A client that cuts its frames anew after a reconnect. Refusing the frame would
            # not help: the client would send the same one again.
            self.counts["overlapping_frames_total"] += 1
            admitted = admitted.without(base_seq - data.base_seq)
        # 5. Append the rest, and name the events that were refused.
        self._appender.append(stream, base_seq, admitted)
        if any(isinstance(event, RunStarted) for event in admitted.events):
            self._lifecycle.note_starts()
        self._news[stream.key] = None
        self.counts["events_total"] += len(admitted.events)
        return self._appender.refuse_events(stream, base_seq, admitted)

    def _skip_refused(self, stream: IncomingStream, next_seq: int) -> bool:
        """Step over a refused frame, and return True; False if there is none before next_seq.

        The number of its events is known only now, from the frame behind it. Asking for it
        again would not help: the client would send the same bytes for ever.
        """
        if stream.refused_at != stream.next_seq:
            return False
        self._skip_missing(stream, next_seq, REFUSED)
        return True

    def _ask_again(self, stream: IncomingStream, now: int) -> list[Message]:
        """Return a WELCOME that names the missing frame, but not for each frame that follows."""
        if now - stream.asked_ns < ASK_AGAIN_NS:
            return []
        stream.asked_ns = now
        self.counts["holes_total"] += 1
        return [self._welcome(stream)]

    def _on_fin(self, peer: bytes, fin: Fin) -> list[Message]:
        """Note that a stream ends at fin.next_seq; FIN_ACK follows when all is on disk."""
        stream = self.streams.get((peer, fin.stream))
        if stream is None:
            return unknown_stream(fin.stream)
        stream.heard_ns = self._clock.monotonic_ns()
        if fin.next_seq > stream.next_seq and not self._skip_refused(stream, fin.next_seq):
            return [self._welcome(stream)]
        stream.fin_seq = fin.next_seq
        self._news[stream.key] = None
        return []

    # --- durability

    def _sync(self) -> set[str]:
        """Sync the journals; return the runs for which there was no room on disk."""
        unsynced = self.runs.unsynced
        for run_id in list(unsynced) if self.has_room else []:
            try:
                self.runs.open(run_id).sync()
            except JournalFull as exc:
                self.counts["full_disk_total"] += 1
                if not self.is_full:
                    log.error("no room on disk, acknowledging nothing: %s", exc)
                    self.is_full = True
        if self.is_full and self.has_room and not unsynced:
            log.info("there is room on disk again")
            self.is_full = False
        return set(unsynced)

    # --- answers

    def _welcome(self, stream: IncomingStream) -> Welcome:
        notice, stream.notice = stream.notice, ""
        return Welcome(stream.number, stream.next_seq, self.credit_bytes, notice)

    def _ack(self, stream: IncomingStream) -> Ack:
        notice, stream.notice = stream.notice, ""
        return Ack(stream.number, stream.durable_seq, self.credit_bytes, notice)
