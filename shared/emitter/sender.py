"""Sender: the thread that sends queued events to the sidecar, or spools them without one.

In: events that emit() queued.
Out: frames on the wire; frames that stay unacknowledged, in the spool on disk.
Never: makes the training thread wait. The two share only the queue, and counters
that are read without blocking.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.clock import Clock
from shared.emitter.backlog import Backlog
from shared.emitter.claims import Claim, ClaimTaken, claim_worker, holder
from shared.emitter.connection import Connection
from shared.emitter.conversation import Conversation, Peer, adopted_peers, loader
from shared.emitter.packing import Refused, kind_of, pack_event
from shared.emitter.process import spawned_by
from shared.emitter.spool import Spool, SpoolUnavailable
from shared.emitter.stream import Frame, OutgoingStream, State
from shared.events import CUSTOM, Event, MetricsLogged, Scalar
from shared.ids import main_source, worker_source
from shared.text import clean

log = logging.getLogger("telemetry.emitter")

SPOOL_RETRY_NS: Final = 5_000_000_000
BY_SIDECAR: Final = "by the sidecar"
"""Reason in Sender.refused for events that were sent and that the sidecar refused."""

FINAL_SPOOL_MARGIN_S: Final = 0.3
QUIET_NS: Final = 250_000_000
"""Time between two turns of the loop while there is nothing to send, receive or spool."""

NOT_AN_EVENT: Final = "refused: not an event"
CHUNK_EVENTS: Final = 4096
"""Events at most taken out of the queue in one turn, before frames are sent and spooled."""

# One bound (queue_max_bytes) holds for three things together: the queue that emit() fills,
# the backlog of events without a number, and the frames. Backlog and frames get only these
# shares of it, so that the queue always has some room.
HELD_SHARE: Final = 15 / 16
FRAMES_SHARE: Final = 0.25
PRESSED_SHARE: Final = 0.25
"""If more than this share is in memory, frames are made and spooled at once."""

LEAVE_NS: Final = 200_000_000
"""At close, how long to wait for an absent sidecar after the last write to the spool."""
ANSWER_NS: Final = 2_000_000_000
"""A sidecar that leaves a message unanswered for so long counts as absent."""

Queued = tuple[int, int, Event | None, int]
"""Item of the queue: wall_ns, mono_ns, the event and its cost in bytes. An event of None
marks a place where events are missing: the queue was full, or they were not events."""


@dataclass(frozen=True)
class SenderOptions:
    """Limits and intervals of one emitter; the defaults are those of the product."""

    queue_max_bytes: int = 64 * 1024 * 1024
    flush_interval_s: float = 0.01
    spool_after_s: float = 0.1
    spool_max_bytes: int = 1024 * 1024 * 1024
    spool_dir: Path | None = None
    series_interval_s: float = 30.0
    """Time between two events with the emitter's own statistics, while they change."""


class Sender:
    """The work of the sender thread, which owns the connection, the streams and the spool.

    `run` is the thread. `close`, `room` and the counters may be used from other threads.
    """

    def __init__(
        self,
        endpoint: str | None,
        stream: OutgoingStream,
        queue: deque[Queued],
        note_taken: Callable[[int], None],
        take_missing: Callable[[], Mapping[str, Counter[str]]],
        series: Callable[[], dict[str, Scalar]],
        options: SenderOptions,
        clock: Clock,
        *,
        is_worker: bool = False,
    ) -> None:
        self.taken = 0
        """Events that were taken out of the queue."""
        self.split = 0
        """Number of additional events that came from splitting wide rows."""
        self.room = options.queue_max_bytes
        """Bytes that the queue may hold: the bound less backlog and frames. Read by emit()."""
        self.refused: Counter[str] = Counter()
        self.backlog = Backlog(int(options.queue_max_bytes * HELD_SHARE), clock)
        self.main = Peer(stream)
        self.crashed = 0
        self._endpoint = endpoint
        self._is_worker = is_worker
        self._claim: Claim | None = None
        self._is_claimed = False
        self._spooled_ns = 0
        """Monotonic time of the last write to the spool."""
        self._ending_ns = 0
        """Monotonic time of the first call of close."""
        self._has_looked_again = False
        self._queue = queue
        self._note_taken = note_taken
        self._take_missing = take_missing
        self._series = series
        self._series_due_ns = clock.monotonic_ns() + int(options.series_interval_s * 1e9)
        self._taken_in_series = 0
        self._options = options
        self._clock = clock
        self._orphans: list[Peer] = []
        self._waiting_since_ns: int | None = None
        """Monotonic time since which the backlog is not empty; None while it is empty."""
        self._spool_retry_ns = 0
        self._idle_until_ns = 0
        self._warned: set[str] = set()
        self._deadline_ns: int | None = None
        self._talk: Conversation | None = None
        self._closed = threading.Event()

    @property
    def is_drained(self) -> bool:
        """True if every event is on the sidecar's disk and the sidecar has confirmed the end."""
        stream = self.main.stream
        if self._queue or len(self.backlog) or stream.frames:
            return False
        has_said_nothing = stream.next_seq == 0 and stream.state in (State.CLOSED, State.ASKED)
        return stream.state is State.DONE or has_said_nothing

    def close(self, timeout_s: float) -> bool:
        """Ask the thread to finish within timeout_s; return True if all was acknowledged.

        Runs on the caller's thread.
        """
        # Part of the time is kept for the last write to the spool.
        margin_s = min(FINAL_SPOOL_MARGIN_S, timeout_s / 4)
        now = self._clock.monotonic_ns()
        self._deadline_ns = now + int((timeout_s - margin_s) * 1e9)
        self._ending_ns = self._ending_ns or now
        self._closed.wait(timeout_s)
        return self.is_drained

    def abandon(self) -> None:
        """Close the parent's spools and claim in a forked child, where no sender thread runs."""
        for peer in (self.main, *self._orphans):
            if peer.spool is not None:
                peer.spool.abandon()
        if self._claim is not None:
            self._claim.abandon()

    def run(self) -> None:
        """Run the sender thread until close: connect, adopt orphans, loop, spool the rest."""
        try:
            with Connection(self._endpoint) as connection:
                talk = self._talk = Conversation(
                    connection, self._clock, self._release, self._note_refused_event
                )
                # 1. Choose the source name: a worker's source is part of its first HELLO.
                if self._is_worker or self._is_of_parent():
                    self._guarded(self._claim_worker)
                # 2. Adopt the spools of ended emitters, to send them too.
                self._guarded(self._adopt_orphans)
                # 3. Loop: a turn if there is work, then wait for a message.
                has_news = True
                while not self._is_over(connection):
                    if (has_news or self._has_work()) and not self._guarded(
                        lambda: self._turn(talk, connection)
                    ):
                        connection.wait(0.1)
                    is_behind = len(self._queue) > CHUNK_EVENTS
                    has_news = connection.wait(0 if is_behind else self._options.flush_interval_s)
        finally:
            # 4. Put the rest into the spool, and release the files.
            self._guarded(self._leave)
            self._closed.set()

    def _has_work(self) -> bool:
        """True if a turn may have something to do. Called a hundred times a second: cheap."""
        return (
            bool(self._queue)
            or self._waiting_since_ns is not None
            or self._deadline_ns is not None
            or self._clock.monotonic_ns() >= self._idle_until_ns
        )

    def _is_over(self, connection: Connection) -> bool:
        if self._deadline_ns is None:
            return False
        now = self._clock.monotonic_ns()
        if self.is_drained or now >= self._deadline_ns:
            return True
        # Everything left is in the spool and no sidecar answers: do not wait any longer.
        is_kept = not (self._queue or len(self.backlog) or self.main.stream.in_memory)
        return (
            is_kept
            and self.main.stream.spooled_events > 0
            and now - max(self._spooled_ns, self._ending_ns) >= LEAVE_NS
            and not (connection.is_connected and self._is_answered(now))
        )

    def _is_answered(self, now: int) -> bool:
        since = self._talk.unanswered_since_ns if self._talk is not None else None
        return since is None or now - since < ANSWER_NS

    def _guarded(self, act: Callable[[], None]) -> bool:
        """Run one part of the thread; return False if it raised. The thread continues."""
        try:
            act()
        except Exception:
            self.crashed += 1
            if self.crashed == 1:
                log.exception("telemetry sender failed; it continues")
            return False
        return True

    def _turn(self, talk: Conversation, connection: Connection) -> None:
        """Do one round of the loop: queue, frames, messages, spool."""
        # 1. Take events out of the queue, and make frames of them.
        self._take_queue()
        now = self._clock.monotonic_ns()
        self._tell_of_itself(now)
        self._make_frames(now)
        # 2. Exchange messages with the sidecar for every stream.
        self.main.is_complete = self._deadline_ns is not None and not (
            self._queue or len(self.backlog)
        )
        talk.turn([*self._orphans, self.main])
        self._forget_finished_orphans()
        # 3. Spool what has been in memory for too long; everything, if the emitter is
        # closing and no sidecar is connected.
        is_last = self._deadline_ns is not None and not connection.is_connected
        if is_last:
            self._make_frames(now, everything=True)
            self._look_again(connection)
        self._spool_overdue(now, everything=is_last or self._is_pressed)
        # 4. Tell emit() the room that is left, and choose when to look again.
        self._note_room()
        stream = self.main.stream
        is_quiet = not stream.frames and not self._orphans
        self._idle_until_ns = now + (QUIET_NS if is_quiet else 0)

    def _look_again(self, connection: Connection) -> None:
        """Connect again at once, one time only: ZeroMQ's own next try may be seconds away."""
        if not self._has_looked_again:
            self._has_looked_again = True
            connection.rebuild()

    # --- the source name of this process

    def _is_of_parent(self) -> bool:
        """True if the process that spawned this one records the run under the same source."""
        parent, stream = spawned_by(), self.main.stream
        if not parent or self._options.spool_dir is None:
            return False
        return holder(self._options.spool_dir, f"{stream.run_id}.{stream.source}") == parent

    def _claim_worker(self) -> None:
        """Become a worker of the source, numbered by the lowest free number or the pid."""
        stream, number = self.main.stream, os.getpid()
        if self._options.spool_dir is not None:
            try:
                directory, source = self._options.spool_dir, main_source(stream.source)
                number, self._claim = claim_worker(directory, stream.run_id, source)
            except OSError:
                number = os.getpid()  # no lock could be taken; the pid is unique too
        stream.source = worker_source(stream.source, number)
        self._is_claimed = True

    def _claim_source(self) -> None:
        """Claim the source name; warn if another process records under it. Both are recorded."""
        self._is_claimed = True
        stream = self.main.stream
        if self._options.spool_dir is None:
            return
        try:
            self._claim = Claim(self._options.spool_dir, f"{stream.run_id}.{stream.source}")
        except ClaimTaken as exc:
            log.warning(
                "run %s is already being recorded as %s by process %s; both are recorded, "
                "each as a session of its own",
                stream.run_id, stream.source, exc.pid,
            )  # fmt: skip
        except OSError:
            pass  # no lock could be taken; the spool warns about that when it is needed

    # --- from the queue to frames

    def _take_queue(self, most: int = CHUNK_EVENTS) -> None:
        cost = 0
        for _ in range(min(most, len(self._queue))):
            wall_ns, mono_ns, event, cost_of_one = self._queue.popleft()
            cost += cost_of_one
            if event is None:
                self._take_missing_events()
            else:
                self.taken += 1
                self._pack(event, wall_ns, mono_ns)
        if self.taken and not self._is_claimed:
            self._claim_source()
        self._note_room()
        self._note_taken(cost)

    def _take_missing_events(self) -> None:
        for reason, kinds in self._take_missing().items():
            self.backlog.add_missing(reason, kinds)
            if reason == NOT_AN_EVENT:
                text = "telemetry refused an event: it is not an event, or has no values"
            else:
                text = f"telemetry dropped events of run {self.main.stream.run_id}: {reason}"
            self._warn_once(reason, text)

    def _note_room(self) -> None:
        frames = self.main.stream.memory_bytes
        # The backlog always keeps some room: with none, no older event could be dropped
        # in favour of a newer one.
        most = int(self._options.queue_max_bytes * HELD_SHARE)
        self.backlog.max_bytes = max(most - frames, most // 4)
        self.room = self._options.queue_max_bytes - frames - self.backlog.held_bytes

    @property
    def _is_pressed(self) -> bool:
        held = self.main.stream.memory_bytes + self.backlog.held_bytes
        return held > self._options.queue_max_bytes * PRESSED_SHARE

    def _pack(self, event: Event, wall_ns: int, mono_ns: int) -> None:
        kind = kind_of(event)
        try:
            packed = pack_event(event, wall_ns, mono_ns, self.main.stream.run_id)
        except Refused as exc:
            self.refused[exc.reason] += 1
            self.backlog.add_missing(f"refused: {exc.reason}", [kind])
            self._warn_once(exc.reason, f"telemetry refused an event: {clean(str(exc), 600)}")
            return
        for piece in packed.pieces:
            self.backlog.add(kind, piece)
        self.split += len(packed.pieces) - 1
        for reason, advice in packed.advice.items():
            self._warn_once(reason, f"telemetry left out a value ({reason}): {clean(advice, 600)}")

    def _tell_of_itself(self, now: int) -> None:
        """Emit the statistics as a metrics event, once per series_interval_s if they changed."""
        if now < self._series_due_ns or self.taken == self._taken_in_series:
            return
        self._series_due_ns = now + int(self._options.series_interval_s * 1e9)
        self.taken += 1
        self._pack(MetricsLogged(kind=CUSTOM, values=self._series()), self._clock.wall_ns(), now)
        self._taken_in_series = self.taken

    def _make_frames(self, now: int, everything: bool = False) -> None:
        """Number the events of the backlog if they can be sent at once or have to be spooled.

        Until then they stay in the backlog, where they can still be dropped, and where
        ten small frames become one.
        """
        if not len(self.backlog):
            return
        since = self._waiting_since_ns = self._waiting_since_ns or now
        stream = self.main.stream
        is_due = stream.can_send_now or self._is_pressed or now - since >= self._spool_after_ns
        if not (everything or is_due):
            return
        window = self._options.queue_max_bytes * FRAMES_SHARE
        while len(self.backlog) and (everything or stream.memory_bytes < window):
            stream.add(self.backlog.take_frame(), since)
        if not len(self.backlog):
            self._waiting_since_ns = None

    # --- the spool

    @property
    def _spool_after_ns(self) -> int:
        return int(self._options.spool_after_s * 1e9)

    def _spool_overdue(self, now: int, everything: bool = False) -> None:
        """Spool the frames that have been in memory for too long, the oldest first."""
        if self._options.spool_dir is None or now < self._spool_retry_ns:
            return
        waiting = self.main.stream.in_memory
        while waiting and (everything or now - waiting[0].framed_ns >= self._spool_after_ns):
            if not self._spool_frame(waiting[0]):
                return

    def _spool_frame(self, frame: Frame) -> bool:
        try:
            spool = self._open_spool()
            body = frame.load()
            at = spool.append(frame.base_seq, frame.count, body)
        except SpoolUnavailable as exc:
            self._spool_retry_ns = self._clock.monotonic_ns() + SPOOL_RETRY_NS
            self._warn_once("spool", f"telemetry {exc}; events stay in memory")
            return False
        self.main.stream.moved_to_spool(loader(spool, at, len(body)))
        self._spooled_ns = self._clock.monotonic_ns()
        return True

    def _open_spool(self) -> Spool:
        stream = self.main.stream
        if self.main.spool is None:
            assert self._options.spool_dir is not None
            self.main.spool = Spool.create(
                self._options.spool_dir, stream.run_id, stream.session, stream.source
            )
        spool = self.main.spool
        if spool.size > self._options.spool_max_bytes or spool.is_full_of_frames:
            raise SpoolUnavailable(f"spool {self.main.spool.path}: full")
        return self.main.spool

    def _adopt_orphans(self) -> None:
        if self._options.spool_dir is not None:
            self._orphans = adopted_peers(self._options.spool_dir, self.main.stream.number + 1)

    def _forget_finished_orphans(self) -> None:
        for peer in [peer for peer in self._orphans if peer.stream.state is State.DONE]:
            self._orphans.remove(peer)
            if peer.spool is not None:
                peer.spool.close(delete=True)

    def _release(self, peer: Peer, frames: list[Frame]) -> None:
        """Empty the spool of the main stream as soon as nothing in it is needed."""
        if peer is not self.main or peer.spool is None or not frames:
            return
        if not peer.stream.spooled_events:
            peer.spool.clear()

    def _note_refused_event(self, peer: Peer) -> None:
        if peer is self.main:
            self.refused[BY_SIDECAR] += 1

    def _leave(self) -> None:
        """End the thread's work: put what is not acknowledged into the spool."""
        now = self._clock.monotonic_ns()
        self._spool_retry_ns = now
        # 1. Number every event, and write every frame to the spool.
        while self._queue:
            self._take_queue()
        self._make_frames(now, everything=True)
        self._spool_overdue(now, everything=True)
        # 2. Log what is left.
        self._say_what_is_left()
        # 3. Release the files: from here on they are orphans, for other processes to send.
        for peer in (self.main, *self._orphans):
            if peer.spool is not None:
                # A fully sent orphan stays until FIN_ACK: a later process has to end its stream.
                peer.spool.close(delete=peer is self.main and not peer.stream.frames)
        if self._claim is not None:
            self._claim.release()

    def _say_what_is_left(self) -> None:
        stream, spool = self.main.stream, self.main.spool
        if stream.spooled_events and spool is not None:
            log.warning(
                "%d events of run %s are not with the sidecar yet; they are in %s, and are sent "
                "by the next emitter or sidecar that uses this spool directory",
                stream.spooled_events, stream.run_id, spool.path,
            )  # fmt: skip
        left = sum(frame.count for frame in stream.in_memory)
        if left:
            log.warning("%d events of run %s are lost: no sidecar and no spool took them", left,
                        stream.run_id)  # fmt: skip

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log.warning(text)
