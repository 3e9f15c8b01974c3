"""Ingest: what emitters send becomes rows of journals, and is acknowledged when on disk.

In: messages of the wire, each with the peer it came from.
Out: the messages to answer with.
Never: acknowledges what is not on disk, or touches a socket: `gateway` does that.

Not thread-safe: the ingest thread owns it, and every run.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from shared.clock import Clock
from shared.events import HARDWARE, LOST, DecodeError, Gap, RunFinished
from shared.ids import check_run_id, check_session, check_source
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
from telemetry.journal.writer import JournalFull, JournalLocked
from telemetry.quarantine import keep
from telemetry.runs import MAIN_SOURCE, Run, Runs

log = logging.getLogger("telemetry.ingest")

CREDIT_BYTES: Final = 4 * 1024 * 1024
SILENT_NS: Final = 15_000_000_000
"""A stream that said nothing for so long (three keepalives) is not live."""

STREAM_OVER_NS: Final = 30_000_000_000
ASK_AGAIN_NS: Final = 500_000_000

Reply = tuple[bytes, Message]


@dataclass
class IncomingStream:
    """One stream of one peer, as far as it has come."""

    peer: bytes
    number: int
    run_id: str
    session: str
    source: str
    next_seq: int
    durable_seq: int
    heard_ns: int
    fin_seq: int | None = None
    is_finished: bool = False
    asked_ns: int = 0
    unsynced: set[str] = field(default_factory=set)
    """Runs whose journals hold frames of it that are not on disk yet."""

    @property
    def is_hardware(self) -> bool:
        return self.source.startswith(HARDWARE)


class Ingest:
    """The state of all streams."""

    def __init__(self, runs: Runs, clock: Clock, host_run: HostRun, lost_after_s: float) -> None:
        self.runs = runs
        self.counts: Counter[str] = Counter()
        """What happened, by name, for /metrics."""
        self.has_room = True
        self._clock = clock
        self._host_run = host_run
        self._lost_after_ns = int(lost_after_s * 1e9)
        self._streams: dict[tuple[bytes, int], IncomingStream] = {}
        self._dirty: set[str] = set()
        self._last_live_ns: dict[str, int] = {}

    @property
    def pending_bytes(self) -> int:
        """Bytes received and not synced."""
        return sum(run.writer.pending_bytes for run in self.runs)

    @property
    def has_live_trainers(self) -> bool:
        now = self._clock.monotonic_ns()
        return any(not s.is_hardware and self._is_live(s, now) for s in self._streams.values())

    def handle(self, peer: bytes, message: Message) -> list[Reply]:
        """Take in one message, and return what can be answered at once."""
        match message:
            case Hello():
                return [(peer, self._on_hello(peer, message))]
            case Data():
                return [(peer, reply) for reply in self._on_data(peer, message)]
            case Fin():
                return [(peer, reply) for reply in self._on_fin(peer, message)]
        self.counts["unexpected_messages_total"] += 1
        return []

    def commit(self) -> list[Reply]:
        """Make what was received durable, and return the acknowledgements for it.

        Raises:
            JournalFault: a disk failed; nothing more can be promised here.
        """
        failed = self._sync_dirty()
        replies: list[Reply] = []
        for stream in list(self._streams.values()):
            if stream.unsynced & failed:
                continue
            stream.unsynced.clear()
            if stream.durable_seq < stream.next_seq - 1:
                stream.durable_seq = stream.next_seq - 1
                replies.append((stream.peer, self._ack(stream)))
            if stream.fin_seq is not None and stream.durable_seq + 1 >= stream.fin_seq:
                stream.is_finished, stream.fin_seq = True, None
                replies.append((stream.peer, FinAck(stream.number)))
        return replies

    def tick(self) -> None:
        """Notice who has gone silent; end the runs that are over. About once a second."""
        now = self._clock.monotonic_ns()
        for key, stream in list(self._streams.items()):
            if now - stream.heard_ns > max(self._lost_after_ns, 2 * STREAM_OVER_NS):
                del self._streams[key]
        for run in self.runs:
            if run.run_id != self._host_run.run_id:
                self._end_if_over(run, now)

    def declare_abandoned_lost(self) -> None:
        """Every producer is known to be gone: what has not finished never will."""
        for stream in self._streams.values():
            stream.is_finished = stream.is_finished or not stream.is_hardware
        now = self._clock.monotonic_ns()
        for run in self.runs:
            is_host = run.run_id == self._host_run.run_id
            if not run.is_ended and run.finish_status is None and not is_host:
                self._declare_lost(run, now - self._last_live_ns.get(run.run_id, now))

    # --- opening a stream

    def _on_hello(self, peer: bytes, hello: Hello) -> Message:
        now = self._clock.monotonic_ns()
        known = self._streams.get((peer, hello.stream))
        if known is not None and (known.run_id, known.session, known.source) == (
            hello.run_id,
            hello.session,
            hello.source,
        ):
            known.heard_ns = now
            known.is_finished = False
            return self._welcome(known)
        try:
            stream = self._opened(peer, hello, now)
        except (ValueError, OSError, JournalLocked) as exc:
            self.counts["refused_streams_total"] += 1
            log.warning("stream refused: %s", exc)
            return Nack(hello.stream, WHOLE_STREAM, str(exc)[:200])
        return self._welcome(stream)

    def _opened(self, peer: bytes, hello: Hello, now: int) -> IncomingStream:
        check_run_id(hello.run_id)
        check_session(hello.session)
        check_source(hello.source)
        if hello.source == "sidecar":
            raise ValueError("the source 'sidecar' is the service's own")
        for key, other in list(self._streams.items()):
            if (other.run_id, other.source) == (hello.run_id, hello.source):
                if other.session == hello.session:
                    del self._streams[key]  # the same producer on a new connection
                elif self._is_live(other, now):
                    raise ValueError(
                        f"another session of {hello.source} of run {hello.run_id} is live"
                    )
        stream = IncomingStream(
            peer, hello.stream, hello.run_id, hello.session, hello.source, 0, -1, now
        )
        if stream.is_hardware:
            stream.next_seq = 1 + max(
                (
                    run.writer.appended_seq(hello.run_id, hello.session, hello.source)
                    for run in self.runs
                ),
                default=-1,
            )
        else:
            self._attach(stream, hello)
        # What lies before first_seq went nowhere, and cannot be had any more.
        stream.next_seq = max(stream.next_seq, hello.first_seq if stream.is_hardware else 0)
        self._streams[peer, hello.stream] = stream
        return stream

    def _attach(self, stream: IncomingStream, hello: Hello) -> None:
        """Find where a producer's stream stands in its run, and account for a hole before it."""
        run = self.runs.open(hello.run_id)
        key = (hello.run_id, hello.session, hello.source)
        appended = run.writer.appended_seq(*key)
        stream.next_seq = appended + 1
        stream.durable_seq = run.writer.durable_seq(*key)
        if (appended < 0 and run.is_ended) or (
            appended < 0 and stream.source == MAIN_SOURCE and run.finish_status is not None
        ):
            run.reopen(is_new_session=True)
        self._last_live_ns[run.run_id] = stream.heard_ns
        if hello.first_seq > stream.next_seq:
            missing = hello.first_seq - stream.next_seq
            run.say(Gap(count=missing, by_kind={"unknown": missing}, reason="lost by the sidecar"))
            self._dirty.add(run.run_id)
            stream.next_seq = hello.first_seq

    # --- frames

    def _on_data(self, peer: bytes, data: Data) -> list[Message]:
        stream = self._streams.get((peer, data.stream))
        if stream is None:
            return [Nack(data.stream, WHOLE_STREAM, "unknown stream")]
        now = stream.heard_ns = self._clock.monotonic_ns()
        if data.base_seq > stream.next_seq:
            return self._ask_again(stream, now)
        try:
            admitted = admit(bytes(data.events), self._clock.wall_ns(), now)
        except DecodeError as exc:
            self.counts["quarantined_frames_total"] += 1
            log.warning("frame of run %s refused: %s", stream.run_id, exc)
            return [Nack(stream.number, data.base_seq, str(exc)[:200])]
        if data.base_seq + len(admitted.events) <= stream.next_seq:
            return [self._ack(stream)]  # it came before; perhaps the answer was lost
        if data.base_seq < stream.next_seq:
            self.counts["overlapping_frames_total"] += 1
            return self._ask_again(stream, now)
        self._take(stream, data.base_seq, admitted)
        self.counts["events_total"] += len(admitted.events)
        return self._refusals(stream, data.base_seq, admitted)

    def _take(self, stream: IncomingStream, base_seq: int, admitted: Admitted) -> None:
        for run in self._destinations(stream):
            run.append(stream.session, stream.source, base_seq, admitted.events, admitted.payload)
            self._dirty.add(run.run_id)
            stream.unsynced.add(run.run_id)
        stream.next_seq = base_seq + len(admitted.events)
        if not stream.is_hardware:
            self._last_live_ns[stream.run_id] = stream.heard_ns

    def _destinations(self, stream: IncomingStream) -> list[Run]:
        """The journals that a frame belongs in: a sampler's goes to every active run."""
        if not stream.is_hardware:
            return [self.runs.open(stream.run_id)]
        active = [
            run
            for run in self.runs
            if run.is_started and not run.is_ended and run.run_id != self._host_run.run_id
        ]
        return active or self._host_run.opened(self.runs)

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
        if fin.next_seq > stream.next_seq:
            return [self._welcome(stream)]
        stream.fin_seq = fin.next_seq
        return []

    # --- durability

    def _sync_dirty(self) -> set[str]:
        """Sync every journal with news; the runs for which there was no room."""
        failed: set[str] = set()
        for run_id in list(self._dirty):
            if not self.has_room:
                failed.add(run_id)
                continue
            try:
                self.runs.open(run_id).sync()
                self._dirty.discard(run_id)
            except JournalFull as exc:
                self._note_full(exc)
                failed.add(run_id)
        return failed

    def _note_full(self, exc: JournalFull) -> None:
        self.counts["full_disk_total"] += 1
        if self.has_room:
            log.error("no room on disk, acknowledging nothing: %s", exc)
            self.has_room = False

    # --- the life of runs

    def _end_if_over(self, run: Run, now: int) -> None:
        if run.is_ended:
            self._release_if_idle(run)
            return
        streams = [s for s in self._streams.values() if s.run_id == run.run_id]
        if any(self._is_live(stream, now) for stream in streams):
            self._last_live_ns[run.run_id] = now
        silent_ns = now - self._last_live_ns.setdefault(run.run_id, now)
        others_over = all(
            s.is_finished or s.source == MAIN_SOURCE or now - s.heard_ns > STREAM_OVER_NS
            for s in streams
        )
        if run.finish_status is not None and others_over and run.run_id not in self._dirty:
            run.end()
        elif silent_ns > self._lost_after_ns:
            self._declare_lost(run, silent_ns)

    def _declare_lost(self, run: Run, silent_ns: int) -> None:
        if run.is_started:
            text = "the trainer went away without a word"
            run.say(Gap(count=0, reason=text, unknown_ms=silent_ns / 1e6))
            run.say(RunFinished(status=LOST))
        try:
            run.sync()
        except JournalFull as exc:
            self._note_full(exc)
            return
        run.end()

    def _release_if_idle(self, run: Run) -> None:
        if run.run_id not in self._dirty and not any(
            s.run_id == run.run_id and not s.is_finished for s in self._streams.values()
        ):
            self.runs.release(run)

    def _is_live(self, stream: IncomingStream, now: int) -> bool:
        return not stream.is_finished and now - stream.heard_ns < SILENT_NS

    def _credit(self) -> int:
        return CREDIT_BYTES if self.has_room else 0

    def _welcome(self, stream: IncomingStream) -> Welcome:
        return Welcome(stream.number, stream.next_seq, self._credit())

    def _ack(self, stream: IncomingStream) -> Ack:
        return Ack(stream.number, stream.durable_seq, self._credit())
