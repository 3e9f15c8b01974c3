"""Reading: the thread that owns the socket of the sidecar, and never waits for a disk.

In: messages of peers, through the gateway; answers of the journal thread.
Out: answers to peers; messages for the journal thread, in the inbox.
Never: opens, writes or syncs a file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

from shared.clock import Clock
from telemetry.ingest.gateway import Gateway
from telemetry.ingest.handler import Reply
from telemetry.ingest.inbox import Inbox
from telemetry.ingest.reception import Reception

log = logging.getLogger("telemetry.ingest.reading")

WAIT_S: Final = 0.25
FAILED_WAIT_S: Final = 0.05
FORGET_NS: Final = 10_000_000_000
"""Time between two looks for streams that are silent."""


class Reading:
    """The reading thread and what it owns: the socket, the gateway and the reception.

    `answer`, `counts`, `start` and `close` are called by the journal thread.
    """

    def __init__(self, gateway: Gateway, inbox: Inbox, clock: Clock) -> None:
        self.reception = Reception(inbox, clock)
        self.failures = 0
        self.polled_ns = clock.monotonic_ns()
        """Monotonic time of its last poll, for /livez."""
        self._gateway = gateway
        self._clock = clock
        self._answers: deque[Reply] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        gateway.watch(self._wake_fd)
        self._stop = threading.Event()
        self._forgot_ns = self.polled_ns
        self._thread = threading.Thread(target=self._run, name="reading", daemon=True)

    @property
    def counts(self) -> dict[str, int]:
        """Counters of /metrics, by name. May be read from any thread."""
        return self._gateway.all_counts | dict(self.reception.counts)

    def start(self) -> None:
        self._thread.start()

    def answer(self, replies: Iterable[Reply]) -> None:
        """Queue answers for the reading thread, and wake it. Called by the journal thread."""
        self._answers.extend(replies)
        if self._answers:
            os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Send the answers that are queued, then stop the thread. May be called twice."""
        if self._wake_fd < 0:
            return
        self._stop.set()
        os.eventfd_write(self._wake_fd, 1)
        if self._thread.is_alive():
            self._thread.join(10)
        os.close(self._wake_fd)
        self._wake_fd = -1

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._poll()
            except Exception:
                self.failures += 1
                if self.failures == 1:
                    log.exception("reading failed; it goes on")
                self._stop.wait(FAILED_WAIT_S)
        self._send_answers()

    def _poll(self) -> None:
        """Run one poll: receive, answer, send the journal thread's answers, ask again."""
        # 1. Receive and answer what needs no disk: a bounded number of messages, so that the
        #    answers below never wait for long.
        for peer, message in self._gateway.receive(WAIT_S):
            self._send(self.reception.handle(peer, message))
        # 2. Send the answers of the journal thread. Each passes the reception first: a peer
        #    that has its WELCOME may send frames at once, and its stream must be known.
        self._send_answers()
        # 3. Ask for frames that were thrown away, after the WELCOMEs and ACKs above have said
        #    where their streams stand now.
        self._send(self.reception.ask_again())
        # 4. Publish that this thread lives; seldom, forget silent streams.
        self.polled_ns = self._clock.monotonic_ns()
        if self.polled_ns - self._forgot_ns > FORGET_NS:
            self._forgot_ns = self.polled_ns
            self.reception.forget_silent()

    def _send_answers(self) -> None:
        # Reset the wake-up before the queue is read: an answer that is added while it is read
        # then wakes the next poll.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        while self._answers:
            peer, answer = self._answers.popleft()
            self.reception.passes(peer, answer)
            self._gateway.send(peer, answer)

    def _send(self, replies: Iterable[Reply]) -> None:
        for peer, answer in replies:
            self._gateway.send(peer, answer)
