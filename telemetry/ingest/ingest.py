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
from collections import Counter
from collections.abc import Mapping
from typing import Final

from shared.clock import Clock
from shared.events import DecodeError, Event, Gap
from shared.wire import (
    WHOLE_STREAM,
    Ack,
    Data,
    Fin,
    FinAck,
    Hello,
    Message,
    Nack,
    Welcome,
)
from telemetry.ingest.admission import Admitted, admit
from telemetry.ingest.host_run import HostRun
from telemetry.ingest.inbox import CREDIT_MAX_BYTES, CREDITS_BYTES
from telemetry.ingest.lifecycle import Lifecycle
from telemetry.ingest.limits import RunLimits, Wait
from telemetry.ingest.opening import Opening
from telemetry.ingest.quarantine import keep
from telemetry.ingest.run import Run
from telemetry.ingest.runs import Runs
from telemetry.ingest.streams import IncomingStream, StreamKey, StreamTable, TooManyStreams
from telemetry.journal.writer import JournalFull, JournalLocked

log = logging.getLogger("telemetry.ingest.ingest")

GAP_LABEL_MAX: Final = 60
GAP_LABELS_MAX: Final = 200
ASK_AGAIN_NS: Final = 500_000_000
REFUSALS_MAX: Final = 1000
OPEN_RUNS_MAX: Final = 4_000
LOST: Final = "lost on the way"
REFUSED: Final = "rejected: not a frame of events"
Reply = tuple[bytes, Message]


class Ingest:
    """The streams of all peers, and the journals that they write. Not thread-safe."""

    def __init__(
        self,
        runs: Runs,
        clock: Clock,
        host_run: HostRun,
        lost_after_s: float,
        open_runs_max: int = OPEN_RUNS_MAX,
    ) -> None:
        self.runs = runs
        self.counts: Counter[str] = Counter()
        """Counters of /metrics, by name."""
        self.gaps: Counter[tuple[str, str]] = Counter()
        """Events that are missing, by kind and reason."""
        self.has_room = True
        """True while enough of the disk is free; the service sets it once a second."""
        self.is_full = False
        """True if the last sync found no room on disk."""
        self.limits = RunLimits(clock, open_runs_max)
        self._clock = clock
        self._host_run = host_run
        self._streams = StreamTable()
        self._dirty: set[str] = set()
        """Runs whose journals have rows that are not synced."""
        self._news: dict[StreamKey, None] = {}
        """Streams that the next commit may have an answer for, in their order."""
        self._refused: set[str] = set()
        """Reasons of refusals that were logged already."""
        parts = runs, self._streams, self._dirty, host_run
        self._opening = Opening(*parts, self.limits, clock)
        self._lives = Lifecycle(*parts, clock, lost_after_s)

    @property
    def pending_bytes(self) -> int:
        """Bytes received and not synced."""
        dirty = [run for name in self._dirty if (run := self.runs.get(name)) is not None]
        return sum(run.writer.pending_bytes for run in dirty)

    @property
    def is_writable(self) -> bool:
        """True if received events can be made durable now."""
        return self.has_room and not self.is_full

    @property
    def has_live_trainers(self) -> bool:
        """True if a producer, other than a sampler, was heard of lately and has not ended."""
        now = self._clock.monotonic_ns()
        return any(not s.is_hardware and s.is_live(now) for s in self._streams)

    @property
    def credit_bytes(self) -> int:
        """Bytes that each stream may have unacknowledged; all together fit into the inbox."""
        if not self.is_writable:
            return 0
        return min(CREDIT_MAX_BYTES, CREDITS_BYTES // max(1, len(self._streams)))

    def handle(self, peer: bytes, message: Message) -> list[Reply]:
        """Take in one message, and return what can be answered at once."""
        match message:
            case Hello():
                answers = self._on_hello(peer, message)
            case Data():
                answers = self._on_data(peer, message)
            case Fin():
                answers = self._on_fin(peer, message)
            case _:
                self.counts["unexpected_messages_total"] += 1
                answers = []
        return [(peer, answer) for answer in answers]

    def hear(self, heard: Mapping[StreamKey, int]) -> None:
        """Note when streams were last heard of by the reading thread, which answered them itself.

        heard: monotonic time in ns, by stream.
        """
        for key, at_ns in heard.items():
            if (stream := self._streams.get(key)) is not None:
                stream.heard_ns = max(stream.heard_ns, at_ns)
                self._tell_rivals(stream)

    def say(self, run: Run, event: Event) -> None:
        """Append an event of the sidecar's own to a run; the next commit syncs it."""
        run.say(event)
        self._dirty.add(run.run_id)

    def commit(self) -> list[Reply]:
        """Make what was received durable, and return the acknowledgements for it.

        Raises:
            JournalFault: a disk failed; nothing more can be promised here.
        """
        # 1. Sync. A run without room on disk stays dirty, and holds back only its own streams.
        failed = self._sync_dirty()
        # 2. Answer the streams that have news and whose every journal is on disk. The others
        #    keep their news for the next commit.
        replies: list[Reply] = []
        for key in list(self._news):
            stream = self._streams.get(key)
            if stream is None:
                del self._news[key]
            elif not stream.unsynced & failed:
                del self._news[key]
                replies += [(stream.peer, answer) for answer in self._settled(stream)]
        return replies

    def tick(self) -> None:
        """Notice streams that have gone silent, and end the runs that are over. Once a second."""
        self._lives.tick()

    def declare_abandoned(self, exit_code: int | None = None) -> None:
        """End every run whose producers have not finished it: they are known to be gone.

        Runs get this exit code, or end as lost where it is None.
        """
        self._lives.declare_abandoned(exit_code)

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
            if (run := self.runs.get(stream.run_id)) is not None:
                run.end_stream(stream.session, stream.source)
            answers.append(FinAck(stream.number))
        return answers

    # --- opening a stream

    def _on_hello(self, peer: bytes, hello: Hello) -> list[Message]:
        """Open a stream, or find it again, and answer with its place."""
        now = self._clock.monotonic_ns()
        stream = self._streams.get((peer, hello.stream))
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
            self.counts["refused_streams_total"] += 1
            self._say_refused(str(exc))
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
        if stream.rival is None:
            return
        rival = stream.rival
        self._opening.note_rivals(stream)
        for told in (stream, rival):
            if told.notice:
                self._news[told.key] = None

    def _say_refused(self, reason: str) -> None:
        """Log a refusal once: a producer that is refused asks again twice a second."""
        if reason in self._refused:
            return
        if len(self._refused) >= REFUSALS_MAX:
            self._refused.clear()
        self._refused.add(reason)
        log.warning("stream refused: %s", reason)

    def _skip_missing(self, stream: IncomingStream, first_seq: int, reason: str) -> None:
        """Go on at first_seq, and journal a Gap for the events before it (not for a sampler)."""
        if first_seq <= stream.next_seq:
            return
        if not stream.is_hardware:
            missing = first_seq - stream.next_seq
            run = self.runs.open(stream.run_id)
            gap = Gap(count=missing, by_kind={"unknown": missing}, reason=reason)
            run.say(gap)
            self._count_gap(gap)
            self._dirty.add(run.run_id)
            stream.unsynced.add(run.run_id)
        stream.next_seq = first_seq
        self._news[stream.key] = None

    # --- frames

    def _on_data(self, peer: bytes, data: Data) -> list[Message]:
        """Append a frame to its journals. No ACK yet: that is `commit`'s, after the sync."""
        # 1. Find the stream. Its producer opens a stream anew when told that it is unknown.
        stream = self._streams.get((peer, data.stream))
        if stream is None:
            return [Nack(data.stream, WHOLE_STREAM, "unknown stream")]
        now = stream.heard_ns = self._clock.monotonic_ns()
        self._tell_rivals(stream)
        # 2. Take no frame behind a hole: the journal has the events of a stream in order.
        if data.base_seq > stream.next_seq and not self._skip_refused(stream, data.base_seq):
            return self._ask_again(stream, now)
        # 3. Check each event. Before anything is appended, so that a bad frame leaves no part.
        try:
            admitted = admit(bytes(data.events), self._clock.wall_ns(), now)
        except DecodeError as exc:
            return [self._quarantined(stream, data, str(exc)[:200])]
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
        self._take(stream, base_seq, admitted)
        self.counts["events_total"] += len(admitted.events)
        return self._refusals(stream, base_seq, admitted)

    def _take(self, stream: IncomingStream, base_seq: int, admitted: Admitted) -> None:
        """Append admitted events to every journal they belong in, and move the stream on."""
        session, source = stream.session, stream.source
        runs = self._destinations(stream)
        if not runs:
            self.counts["hardware_events_without_a_run_total"] += len(admitted.events)
        for run in runs:
            self._dirty.add(run.run_id)
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
        self._news[stream.key] = None
        for event in admitted.events:
            if isinstance(event, Gap):
                self._count_gap(event)

    def _count_gap(self, gap: Gap) -> None:
        """Count a Gap by kind and reason for /metrics, with a bounded number of labels."""
        for kind, count in gap.by_kind.items():
            key = kind[:GAP_LABEL_MAX], gap.reason[:GAP_LABEL_MAX]
            is_known = key in self.gaps or len(self.gaps) < GAP_LABELS_MAX
            self.gaps[key if is_known else ("other", "other")] += count

    def _destinations(self, stream: IncomingStream) -> list[Run]:
        """Return the runs that a frame belongs in.

        A sampler's frame goes to every active run, or to the host's own run if there is none.
        """
        if not stream.is_hardware:
            return [self.runs.open(stream.run_id)]
        return self.runs.active(self._host_run.run_id) or self._host_run.opened(self.runs)

    def _quarantined(self, stream: IncomingStream, data: Data, reason: str) -> Nack:
        """Put a frame into quarantine that is no array of events; count and log it once."""
        if stream.refused_at != stream.next_seq:
            stream.refused_at = stream.next_seq
            self.counts["quarantined_frames_total"] += 1
            log.warning("frame of run %s refused: %s", stream.run_id, reason)
            if (run := self.runs.get(stream.run_id)) is not None:
                name = f"{stream.session}-{data.base_seq}.frame"
                keep(run.directory / "quarantine", name, bytes(data.events))
        return Nack(stream.number, data.base_seq, reason)

    def _skip_refused(self, stream: IncomingStream, next_seq: int) -> bool:
        """Step over a refused frame, and return True; False if there is none before next_seq.

        The number of its events is known only now, from the frame behind it. Asking for it
        again would not help: the client would send the same bytes for ever.
        """
        if stream.refused_at != stream.next_seq:
            return False
        self._skip_missing(stream, next_seq, REFUSED)
        return True

    def _refusals(self, stream: IncomingStream, base_seq: int, admitted: Admitted) -> list[Message]:
        """Put refused events into quarantine, and return a NACK for each."""
        replies: list[Message] = []
        for position, raw, reason in admitted.rejected:
            self.counts["quarantined_events_total"] += 1
            seq = base_seq + position
            for run_id in stream.unsynced:
                run = self.runs.open(run_id)
                keep(run.directory / "quarantine", f"{stream.session}-{seq}.msgpack", raw)
            replies.append(Nack(stream.number, seq, reason))
        return replies

    def _ask_again(self, stream: IncomingStream, now: int) -> list[Message]:
        """Return a WELCOME that names the missing frame, but not for each frame that follows."""
        if now - stream.asked_ns < ASK_AGAIN_NS:
            return []
        stream.asked_ns = now
        self.counts["holes_total"] += 1
        return [self._welcome(stream)]

    def _on_fin(self, peer: bytes, fin: Fin) -> list[Message]:
        """Note that a stream ends at fin.next_seq; FIN_ACK follows when all is on disk."""
        stream = self._streams.get((peer, fin.stream))
        if stream is None:
            return [Nack(fin.stream, WHOLE_STREAM, "unknown stream")]
        stream.heard_ns = self._clock.monotonic_ns()
        if fin.next_seq > stream.next_seq and not self._skip_refused(stream, fin.next_seq):
            return [self._welcome(stream)]
        stream.fin_seq = fin.next_seq
        self._news[stream.key] = None
        return []

    # --- durability

    def _sync_dirty(self) -> set[str]:
        """Sync every dirty journal; return the runs for which there was no room on disk."""
        if not self.has_room:
            return set(self._dirty)
        for run_id in list(self._dirty):
            try:
                self.runs.open(run_id).sync()
                self._dirty.discard(run_id)
            except JournalFull as exc:
                self.counts["full_disk_total"] += 1
                if not self.is_full:
                    log.error("no room on disk, acknowledging nothing: %s", exc)
                    self.is_full = True
        if self.is_full and not self._dirty:
            log.info("there is room on disk again")
            self.is_full = False
        return set(self._dirty)

    # --- answers

    def _welcome(self, stream: IncomingStream) -> Welcome:
        notice, stream.notice = stream.notice, ""
        return Welcome(stream.number, stream.next_seq, self.credit_bytes, notice)

    def _ack(self, stream: IncomingStream) -> Ack:
        notice, stream.notice = stream.notice, ""
        return Ack(stream.number, stream.durable_seq, self.credit_bytes, notice)
