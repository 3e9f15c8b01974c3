"""Ingest: what emitters send becomes rows of journals, and is acknowledged when on disk.

In: messages of the wire, each with the peer it came from.
Out: the messages to answer with.
Never: acknowledges what is not on disk, or touches a socket: `gateway` does that.

Not thread-safe: the journal thread owns it, and every run.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final

from shared.clock import Clock
from shared.events import DecodeError, Gap
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
from telemetry.admission import Admitted, admit
from telemetry.hostrun import HostRun
from telemetry.inbox import CREDIT_MAX_BYTES, CREDITS_BYTES
from telemetry.journal.writer import JournalFull, JournalLocked
from telemetry.lifecycle import Lifecycle
from telemetry.limits import RunLimits, Wait
from telemetry.opening import Opening
from telemetry.quarantine import keep
from telemetry.runs import Run, Runs
from telemetry.streams import IncomingStream, StreamKey, StreamTable, TooManyStreams

log = logging.getLogger("telemetry.ingest")

GAP_LABEL_MAX: Final = 60
GAP_LABELS_MAX: Final = 200
ASK_AGAIN_NS: Final = 500_000_000
REFUSALS_MAX: Final = 1000
OPEN_RUNS_MAX: Final = 4_000
LOST: Final = "lost on the way"
REFUSED: Final = "rejected: not a frame of events"
Reply = tuple[bytes, Message]


class Ingest:
    """The state of all streams."""

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
        """What happened, by name, for /metrics."""
        self.gaps: Counter[tuple[str, str]] = Counter()
        """Events that are missing, by kind and reason."""
        self.has_room = True
        """There is as much free as there should be; who looks at disks says so."""
        self.is_full = False
        """The last sync found no room."""
        self.limits = RunLimits(clock, open_runs_max)
        self._clock = clock
        self._host_run = host_run
        self._streams = StreamTable()
        self._dirty: set[str] = set()
        self._news: dict[StreamKey, None] = {}
        """Streams that the next commit may have an answer for, in their order."""
        self._refused: set[str] = set()
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
        """What comes in can be made durable."""
        return self.has_room and not self.is_full

    @property
    def has_live_trainers(self) -> bool:
        now = self._clock.monotonic_ns()
        return any(not s.is_hardware and s.is_live(now) for s in self._streams)

    @property
    def credit_bytes(self) -> int:
        """What a stream may have unacknowledged: all together about what the queue holds."""
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
        """Note when streams were last heard of whose messages need nothing from here."""
        for key, at_ns in heard.items():
            if (stream := self._streams.get(key)) is not None:
                stream.heard_ns = max(stream.heard_ns, at_ns)
                self._tell_rivals(stream)

    def commit(self) -> list[Reply]:
        """Make what was received durable, and return the acknowledgements for it.

        Raises:
            JournalFault: a disk failed; nothing more can be promised here.
        """
        failed = self._sync_dirty()
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
        """Notice who has gone silent; end the runs that are over. About once a second."""
        self._lives.tick()

    def declare_abandoned(self, exit_code: int | None = None) -> None:
        """Every producer is known to be gone: what has not finished ends with this exit
        code, or as lost where nobody knows it."""
        self._lives.declare_abandoned(exit_code)

    def _settled(self, stream: IncomingStream) -> list[Message]:
        """What to say of a stream all of which is on disk."""
        stream.unsynced.clear()
        answers: list[Message] = []
        if stream.durable_seq < stream.next_seq - 1 or stream.notice:
            stream.durable_seq = stream.next_seq - 1
            answers.append(self._ack(stream))
        if stream.fin_seq is not None and stream.durable_seq + 1 >= stream.fin_seq:
            stream.is_finished, stream.fin_seq = True, None
            if (run := self.runs.get(stream.run_id)) is not None:
                run.end_stream(stream.session, stream.source)
            answers.append(FinAck(stream.number))
        return answers

    # --- opening a stream

    def _on_hello(self, peer: bytes, hello: Hello) -> list[Message]:
        now = self._clock.monotonic_ns()
        stream = self._streams.get((peer, hello.stream))
        try:
            if stream is None or not stream.is_asked_for_by(hello):
                stream = self._opening.open(peer, hello, now)
            stream.heard_ns = now
            stream.is_finished = False
            self._tell_rivals(stream)
            self._skip_missing(stream, hello.first_seq, LOST)
        except (Wait, TooManyStreams) as exc:
            self.counts["streams_told_to_wait_total"] += 1
            return [Nack(hello.stream, WHOLE_STREAM, str(exc)[:200])]
        except (ValueError, OSError, JournalLocked, JournalFull) as exc:
            self.counts["refused_streams_total"] += 1
            self._say_refused(str(exc))
            return [Nack(hello.stream, WHOLE_STREAM, str(exc)[:200])]
        self._news[stream.key] = None
        answers: list[Message] = [self._welcome(stream)]
        if stream.durable_seq >= 0:
            # A WELCOME says what was received; this, how much of it is on disk already.
            answers.append(self._ack(stream))
        return answers

    def _tell_rivals(self, stream: IncomingStream) -> None:
        if stream.rival is None:
            return
        rival = stream.rival
        self._opening.note_rivals(stream)
        for told in (stream, rival):
            if told.notice:
                self._news[told.key] = None

    def _say_refused(self, reason: str) -> None:
        """Once: whoever is refused asks again twice a second."""
        if reason in self._refused:
            return
        if len(self._refused) >= REFUSALS_MAX:
            self._refused.clear()
        self._refused.add(reason)
        log.warning("stream refused: %s", reason)

    def _skip_missing(self, stream: IncomingStream, first_seq: int, reason: str) -> None:
        """Go on from first_seq where what lies before it can't be had any more."""
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
        stream = self._streams.get((peer, data.stream))
        if stream is None:
            return [Nack(data.stream, WHOLE_STREAM, "unknown stream")]
        now = stream.heard_ns = self._clock.monotonic_ns()
        self._tell_rivals(stream)
        if data.base_seq > stream.next_seq and not self._skip_refused(stream, data.base_seq):
            return self._ask_again(stream, now)
        try:
            admitted = admit(bytes(data.events), self._clock.wall_ns(), now)
        except DecodeError as exc:
            return [self._quarantined(stream, data, str(exc)[:200])]
        if data.base_seq + len(admitted.events) <= stream.next_seq:
            return [self._ack(stream)]  # it came before; perhaps the answer was lost
        base_seq = max(data.base_seq, stream.next_seq)
        if data.base_seq < base_seq:
            # A client that cuts its frames anew; asked again it would send the same one.
            self.counts["overlapping_frames_total"] += 1
            admitted = admitted.without(base_seq - data.base_seq)
        self._take(stream, base_seq, admitted)
        self.counts["events_total"] += len(admitted.events)
        return self._refusals(stream, base_seq, admitted)

    def _take(self, stream: IncomingStream, base_seq: int, admitted: Admitted) -> None:
        session, source = stream.session, stream.source
        runs = self._destinations(stream)
        if not runs:
            self.counts["hardware_events_without_a_run_total"] += len(admitted.events)
        for run in runs:
            self._dirty.add(run.run_id)
            stream.unsynced.add(run.run_id)
            # One of a sampler's journals may have what another had to be sent again.
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
        """By kind and reason, for /metrics; a foreign client's reasons are only so many."""
        for kind, count in gap.by_kind.items():
            key = kind[:GAP_LABEL_MAX], gap.reason[:GAP_LABEL_MAX]
            is_known = key in self.gaps or len(self.gaps) < GAP_LABELS_MAX
            self.gaps[key if is_known else ("other", "other")] += count

    def _destinations(self, stream: IncomingStream) -> list[Run]:
        """The journals that a frame belongs in: a sampler's goes to every active run."""
        if not stream.is_hardware:
            return [self.runs.open(stream.run_id)]
        return self.runs.active(self._host_run.run_id) or self._host_run.opened(self.runs)

    def _quarantined(self, stream: IncomingStream, data: Data, reason: str) -> Nack:
        """Put a frame aside of which not even the number of events is known."""
        if stream.refused_at != stream.next_seq:
            stream.refused_at = stream.next_seq
            self.counts["quarantined_frames_total"] += 1
            log.warning("frame of run %s refused: %s", stream.run_id, reason)
            if (run := self.runs.get(stream.run_id)) is not None:
                name = f"{stream.session}-{data.base_seq}.frame"
                keep(run.directory / "quarantine", name, bytes(data.events))
        return Nack(stream.number, data.base_seq, reason)

    def _skip_refused(self, stream: IncomingStream, next_seq: int) -> bool:
        """Go on at next_seq, if what lies before it is a frame that was refused: nobody
        can tell its events, and a client that sent it would send it again for ever."""
        if stream.refused_at != stream.next_seq:
            return False
        self._skip_missing(stream, next_seq, REFUSED)
        return True

    def _refusals(self, stream: IncomingStream, base_seq: int, admitted: Admitted) -> list[Message]:
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
        """A frame is missing before this one: say which, but not for each that follows."""
        if now - stream.asked_ns < ASK_AGAIN_NS:
            return []
        stream.asked_ns = now
        self.counts["holes_total"] += 1
        return [self._welcome(stream)]

    def _on_fin(self, peer: bytes, fin: Fin) -> list[Message]:
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
        """Sync every journal with news; the runs for which there was no room."""
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
