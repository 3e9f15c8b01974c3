"""Journal loop: takes in messages, commits, acknowledges, and once a second ticks.

In: messages from the inbox.
Out: rows on disk, and the answers that say so.
Never: acknowledges before the sync.

Not thread-safe: the journal thread owns it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from shared.clock import Clock
from shared.wire import Message
from telemetry.config import ServeConfig
from telemetry.ingest.inbox import Inbox
from telemetry.ingest.ingest import Ingest
from telemetry.ingest.reading import Reading
from telemetry.journal.writer import JournalFault

log = logging.getLogger("telemetry.service")

IDLE_WAIT_S: Final = 0.25
TICK_NS: Final = 1_000_000_000

PENDING_MAX_BYTES: Final = 8 * 1024 * 1024
"""Bytes received and not synced, above which nothing is taken while the disk has no room."""

OPENINGS_A_POLL: Final = 256
"""Streams that are opened at most between two looks at the frames."""


class JournalLoop:
    """The polls of the journal thread of one sidecar."""

    def __init__(
        self,
        config: ServeConfig,
        clock: Clock,
        inbox: Inbox,
        reading: Reading,
        ingest: Ingest,
        tick: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        """Make the loop. tick: called once a second. stop: ends a wait for room on disk."""
        self._commit_bytes = config.commit_bytes
        self._commit_interval_s = config.commit_interval_ms / 1e3
        self._clock, self._inbox, self._reading, self._ingest = clock, inbox, reading, ingest
        self._tick, self._stop = tick, stop
        self._ticked_ns = 0
        self.polled_ns = clock.monotonic_ns()
        """Monotonic time when the journal thread was last seen not to be stalled."""
        self.failures = 0
        """Polls and messages that raised something unexpected."""

    def poll(self) -> None:
        """Run one poll; log and count an exception in it, so that the next poll begins.

        Raises:
            JournalFault: a disk failed; going on would acknowledge what may not be on it.
        """
        try:
            self._poll()
        except JournalFault:
            raise
        except Exception:
            self._note_failure("a poll failed; the sidecar goes on")

    def _poll(self) -> None:
        """One sync then serves all messages of up to commit_interval_ms, of all streams."""
        due_ns: int | None = None
        # 1. Renew the leave to open runs: openings take a disk's time, and may not fill a poll.
        self._ingest.limits.begin_poll()
        # 2. Append what comes in, until a commit is due or nothing comes. The first message
        #    sets the time of the commit, so that an idle sidecar syncs nothing.
        while not self._is_commit_due(due_ns):
            now = self._clock.monotonic_ns()
            left_s = IDLE_WAIT_S if due_ns is None else (due_ns - now) / 1e9
            has_news = self._inbox.wait(left_s)
            # Before the disk is touched: the reading thread counts a stall from here.
            self._publish()
            if not has_news:
                break
            due_ns = due_ns or self.polled_ns + int(self._commit_interval_s * 1e9)
            self._take_in()
        # 3. Sync the journals, and only then acknowledge: an ACK says "on disk".
        self._reading.answer(self._ingest.commit())
        self._publish()
        # 4. Note who was heard of, after the sync: it may have taken minutes, in which the
        #    reading thread answered peers that otherwise would now count as silent.
        self._ingest.hear(self._reading.reception.taken_heard())
        # 5. Once a second, look at room and silence. Last: silence is judged by what the
        #    steps before have heard.
        if self.polled_ns - self._ticked_ns >= TICK_NS:
            self._ticked_ns = self.polled_ns
            self._tick()

    def _is_commit_due(self, due_ns: int | None) -> bool:
        if due_ns is None:
            return False
        # Openings that this poll has no more time for wait for the next: commit now.
        if self._ingest.limits.is_poll_spent or self._clock.monotonic_ns() >= due_ns:
            return True
        return self._ingest.pending_bytes >= self._commit_bytes

    def _take_in(self) -> None:
        """Take openings of streams, then frames: as many as may be pending."""
        # 1. Openings, within the bounds of this poll: a frame is of use only in an open stream.
        for _ in range(OPENINGS_A_POLL):
            if self._ingest.limits.is_poll_spent or not (item := self._inbox.take_opening()):
                break
            self._handle(*item)
        # 2. With a full disk, leave the frames in the inbox: its size is bounded, and the
        #    memory of the journals is not. Waiting here keeps the loop from spinning.
        pending = self._ingest.pending_bytes
        if not self._ingest.is_writable and pending >= PENDING_MAX_BYTES:
            self._stop.wait(self._commit_interval_s)
            return
        # 3. Frames, up to the size at which a commit is due anyway.
        for peer, message in self._inbox.take(max(1, self._commit_bytes - pending)):
            self._handle(peer, message)

    def _handle(self, peer: bytes, message: Message) -> None:
        """Handle one message; log and count an exception, so that the next one is handled."""
        try:
            self._reading.answer(self._ingest.handle(peer, message))
        except JournalFault:
            raise
        except Exception:
            self._note_failure("a message could not be handled; the sidecar goes on")

    def _note_failure(self, text: str) -> None:
        self.failures += 1
        if self.failures == 1:
            log.exception(text)

    def _publish(self) -> None:
        """Tell the reading thread that this thread is not stalled, and how much credit to give."""
        self.polled_ns = self._reading.reception.polled_ns = self._clock.monotonic_ns()
        self._reading.reception.credit_bytes = self._ingest.credit_bytes
