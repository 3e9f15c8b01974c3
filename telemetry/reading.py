"""Reading: the thread that owns the socket of the sidecar, and never waits for a disk.

In: messages of peers, through the gateway; answers of the journal thread.
Out: answers to peers, and what is to be journaled in the inbox.
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
from telemetry.gateway import Gateway
from telemetry.inbox import Inbox
from telemetry.reception import Reception, Reply

log = logging.getLogger("telemetry.reading")

WAIT_S: Final = 0.25
FAILED_WAIT_S: Final = 0.05
FORGET_NS: Final = 10_000_000_000


class Reading:
    """The reading thread, from start to close."""

    def __init__(self, gateway: Gateway, inbox: Inbox, clock: Clock) -> None:
        self.reception = Reception(inbox, clock)
        self.failures = 0
        self.turned_ns = clock.monotonic_ns()
        """When it last turned: /livez asks."""
        self._gateway = gateway
        self._clock = clock
        self._answers: deque[Reply] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        gateway.watch(self._wake_fd)
        self._stop = threading.Event()
        self._forgot_ns = self.turned_ns
        self._thread = threading.Thread(target=self._run, name="reading", daemon=True)

    @property
    def counts(self) -> dict[str, int]:
        """What happened, by name; may be called from any thread."""
        return self._gateway.all_counts | dict(self.reception.counts)

    def start(self) -> None:
        self._thread.start()

    def answer(self, replies: Iterable[Reply]) -> None:
        """Hand answers to the reading thread. The journal thread calls this."""
        self._answers.extend(replies)
        if self._answers:
            os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Send what is to be answered, then stop. May be called twice."""
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
                self._turn()
            except Exception:
                self.failures += 1
                if self.failures == 1:
                    log.exception("reading failed; it goes on")
                self._stop.wait(FAILED_WAIT_S)
        self._send_answers()

    def _turn(self) -> None:
        # In: what peers have sent, to a bound, so that answers never wait for long.
        for peer, message in self._gateway.receive(WAIT_S):
            self._send(self.reception.take_in(peer, message))
        # Out: what the journal thread has to say.
        self._send_answers()
        self._send(self.reception.ask_again())
        self.turned_ns = self._clock.monotonic_ns()
        if self.turned_ns - self._forgot_ns > FORGET_NS:
            self._forgot_ns = self.turned_ns
            self.reception.forget_silent()

    def _send_answers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        while self._answers:
            peer, answer = self._answers.popleft()
            self.reception.passes(peer, answer)
            self._gateway.send(peer, answer)

    def _send(self, replies: Iterable[Reply]) -> None:
        for peer, answer in replies:
            self._gateway.send(peer, answer)
