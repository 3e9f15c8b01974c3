"""Sender: the thread that sends queued events to the sidecar, or spools them without one.

In: events that emit() queued.
Out: frames on the wire; frames that stay unacknowledged, in the spool on disk.
Never: makes the training thread wait. The two share only the queue, and counters
that are read without blocking.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from shared.clock import Clock
from shared.emitter.backlog import QUEUE_FULL
from shared.emitter.connection import Connection
from shared.emitter.conversation import Conversation
from shared.emitter.framing import CHUNK_EVENTS, Framing
from shared.emitter.notices import Notices
from shared.emitter.options import EmitterOptions
from shared.emitter.pace import Pace
from shared.emitter.peers import Peer, adopted_peers, forget_finished
from shared.emitter.queue import EventQueue
from shared.emitter.source_claim import SourceClaim
from shared.emitter.spooling import Spooling
from shared.emitter.stats import EmitterStats, added_up
from shared.emitter.stream import OutgoingStream
from shared.events import CUSTOM, MetricsLogged

log = logging.getLogger("telemetry.emitter")

BY_SIDECAR: Final = "by the sidecar"
"""Reason for which events count as refused that were sent and that the sidecar refused."""
SPOOL_DAMAGED: Final = "spool damaged"
"""Reason for which events count as dropped that the spool did not give back."""

CRASHED_WAIT_S: Final = 0.1
FINAL_SPOOL_MARGIN_S: Final = 0.3
"""Part of the time of `close` that is kept for the last write to the spool."""
LEAVE_NS: Final = 200_000_000
"""At close, how long to wait for an absent sidecar after the last write to the spool."""
ANSWER_NS: Final = 2_000_000_000
"""A sidecar that leaves a message unanswered for so long counts as absent."""


class Sender:
    """The work of the sender thread, which owns the connection, the streams and the spool.

    `run` is the thread. `close`, `stats` and `source` may be used from other threads.
    """

    def __init__(
        self,
        endpoint: str | None,
        queue: EventQueue,
        stream: OutgoingStream,
        options: EmitterOptions,
        clock: Clock,
        *,
        is_worker: bool = False,
    ) -> None:
        notices = Notices()
        self.queue = queue
        self.main = Peer(stream)
        self.framing = Framing(queue, stream, options, clock, notices)
        self.spooling = Spooling(stream, options, clock, notices)
        self.claim = SourceClaim(options.spool_dir, stream, is_worker)
        self.has_ended = threading.Event()
        self.crashed = 0
        self._endpoint = endpoint
        self._options = options
        self._clock = clock
        self._orphans: list[Peer] = []
        self._talk: Conversation | None = None
        self._series_due_ns = clock.monotonic_ns() + int(options.series_interval_s * 1e9)
        self._taken_in_series = 0
        self._pace = Pace(clock, options.flush_interval_s)
        self._deadline_ns: int | None = None
        """Monotonic time at which the thread has to end; None until `close`."""
        self._ending_ns = 0
        """Monotonic time of the first call of close."""
        self._has_looked_again = False

    @property
    def source(self) -> str:
        """Source name of the stream; that of a worker is known only after its first poll."""
        return self.main.stream.id.source

    @property
    def is_drained(self) -> bool:
        """True if every event is on the sidecar's disk and the sidecar has confirmed the end."""
        stream = self.main.stream
        if not self.framing.is_empty or stream.frames:
            return False
        return stream.is_done or stream.is_unused

    def stats(self) -> EmitterStats:
        """Return the counts of events so far; they are read at slightly different moments."""
        queue, framing, stream = self.queue, self.framing, self.main.stream
        refused_late = stream.refused_events
        dropped = added_up(
            queue.dropped,
            {QUEUE_FULL: framing.backlog.dropped_events, SPOOL_DAMAGED: stream.lost_events},
        )
        refused = added_up(queue.refused, framing.refused, {BY_SIDECAR: refused_late})
        return EmitterStats(
            emitted=queue.emitted + framing.added + framing.backlog.gaps,
            acknowledged=stream.acknowledged - refused_late,
            queued=len(queue) + len(framing.backlog) + stream.unacknowledged_events,
            spooled=stream.frames.spooled_events,
            dropped=sum(dropped.values()),
            refused=sum(refused.values()),
            dropped_by_reason=dropped,
            refused_by_reason=refused,
        )

    def close(self, timeout_s: float) -> bool:
        """Ask the thread to finish within timeout_s; return True if all was acknowledged.

        Runs on the caller's thread.
        """
        margin_s = min(FINAL_SPOOL_MARGIN_S, timeout_s / 4)
        now = self._clock.monotonic_ns()
        self._deadline_ns = now + int((timeout_s - margin_s) * 1e9)
        self._ending_ns = self._ending_ns or now
        self.has_ended.wait(timeout_s)
        return self.is_drained

    def abandon(self) -> None:
        """Close the parent's spools and claim in a forked child, where no sender thread runs."""
        self.spooling.abandon()
        for peer in self._orphans:
            if peer.spool is not None:
                peer.spool.abandon()
        self.claim.abandon()

    # --- the thread

    def run(self) -> None:
        """Run the sender thread until close: connect, adopt orphans, loop, spool the rest."""
        try:
            with Connection(self._endpoint) as connection:
                talk = self._talk = Conversation(connection, self._clock, self._options.silence_s)
                # 1. Choose the source name: a worker's source is part of its first HELLO.
                self._guarded(self.claim.claim_if_worker)
                # 2. Adopt the spools of ended emitters, to send them too.
                self._guarded(self._adopt_orphans)
                # 3. Loop: a poll if there is work, then wait for a message.
                has_news = True
                while not self._is_over(connection):
                    if (has_news or self._has_work()) and not self._guarded(
                        lambda: self._turn(talk, connection)
                    ):
                        connection.wait(CRASHED_WAIT_S)
                    is_behind = len(self.queue) > CHUNK_EVENTS
                    has_news = connection.wait(0 if is_behind else self._pace.pause_s)
        finally:
            # 4. Put the rest into the spool, and release the files.
            self._guarded(self._leave)
            self.has_ended.set()

    def _turn(self, talk: Conversation, connection: Connection) -> None:
        """Do one round of the loop. The order is that of the data: queue, wire, disk."""
        # 1. Take events out of the queue first: it is what the training thread may fill.
        taken = self.queue.taken
        self._take_queue()
        now = self._clock.monotonic_ns()
        self._report_itself(now)
        # 2. Number those that can be sent now, so that the messages below can carry them.
        self.framing.make_frames(now)
        # 3. Exchange messages for every stream. FIN may follow only when no event is behind it.
        self.main.is_complete = self._is_closing and self.framing.is_empty
        talk.poll([*self._orphans, self.main])
        # 4. Let go of what was acknowledged just now, before anything is added to a spool.
        self.spooling.clear_if_unneeded()
        forget_finished(self._orphans)
        # 5. Spool what has been in memory for too long. If the emitter is closing and no
        # sidecar is connected, all of it: the time may be up before it is overdue.
        is_last = self._is_closing and not connection.is_connected
        if is_last:
            self.framing.make_frames(now, everything=True)
            self._look_again(connection)
        self.spooling.move_overdue(now, everything=is_last or self.framing.is_pressed)
        # 6. Give emit() the memory that the spool has freed, and choose when to look again.
        self.framing.share_memory()
        is_quiet = not self.main.stream.frames and not self._orphans
        self._pace.on_poll(now, has_taken=self.queue.taken != taken, is_quiet=is_quiet)

    def _leave(self) -> None:
        """End the thread's work: put what is not acknowledged into the spool."""
        # 1. Number every event: a spool holds numbered frames only.
        now = self._clock.monotonic_ns()
        while self.queue:
            self._take_queue()
        self.framing.make_frames(now, everything=True)
        # 2. Write every frame to the spool, and log what is left where.
        self.spooling.move_all(now)
        self._log_what_is_left()
        # 3. Release the files: from here on they are orphans, for other processes to send.
        # A fully sent orphan stays until FIN_ACK: a later process has to end its stream.
        self.spooling.close()
        for peer in self._orphans:
            if peer.spool is not None:
                peer.spool.close(delete=False)
        # 4. Release the name last: whoever takes it next finds the spool free.
        self.claim.release()

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

    # --- when to act, and when to end

    @property
    def _is_closing(self) -> bool:
        return self._deadline_ns is not None

    def _has_work(self) -> bool:
        """True if a poll may have something to do. Called a hundred times a second: cheap."""
        return bool(self.queue) or self.framing.is_waiting or self._is_closing or self._pace.is_due

    def _is_over(self, connection: Connection) -> bool:
        if self._deadline_ns is None:
            return False
        now = self._clock.monotonic_ns()
        if self.is_drained or now >= self._deadline_ns:
            return True
        # Everything left is in the spool and no sidecar answers: do not wait any longer.
        frames = self.main.stream.frames
        is_kept = self.framing.is_empty and not frames.in_memory
        return (
            is_kept
            and frames.spooled_events > 0
            and now - max(self.spooling.written_ns, self._ending_ns) >= LEAVE_NS
            and not (connection.is_connected and self._is_answered(now))
        )

    def _is_answered(self, now: int) -> bool:
        since = self._talk.unanswered_since_ns if self._talk is not None else None
        return since is None or now - since < ANSWER_NS

    def _look_again(self, connection: Connection) -> None:
        """Connect again at once, one time only: ZeroMQ's own next try may be seconds away."""
        if not self._has_looked_again:
            self._has_looked_again = True
            connection.rebuild()

    # --- the steps of a poll

    def _take_queue(self) -> None:
        self.framing.take_queue()
        # With the first event only: an emitter that says nothing holds no name.
        if self.queue.taken:
            self.claim.claim_once()

    def _report_itself(self, now: int) -> None:
        """Emit the statistics as a metrics event, once per series_interval_s if they changed."""
        taken = self.queue.taken
        if now < self._series_due_ns or taken == self._taken_in_series:
            return
        self._series_due_ns = now + int(self._options.series_interval_s * 1e9)
        self._taken_in_series = taken
        stats = self.stats()
        # This event counts too, in what it says.
        values = replace(stats, emitted=stats.emitted + 1).as_metrics()
        event = MetricsLogged(kind=CUSTOM, values=values)
        self.framing.add(event, self._clock.wall_ns(), now)

    def _adopt_orphans(self) -> None:
        if self._options.spool_dir is not None:
            self._orphans = adopted_peers(self._options.spool_dir, self.main.stream.number + 1)

    def _log_what_is_left(self) -> None:
        stream, spool = self.main.stream, self.spooling.spool
        if stream.frames.spooled_events and spool is not None:
            log.warning(
                "%d events of run %s are not with the sidecar yet; they are in %s, and are sent "
                "by the next emitter or sidecar that uses this spool directory",
                stream.frames.spooled_events, stream.id.run_id, spool.path,
            )  # fmt: skip
        left = sum(frame.count for frame in stream.frames.in_memory)
        if left:
            log.warning("%d events of run %s are lost: no sidecar and no spool took them", left,
                        stream.id.run_id)  # fmt: skip
