"""Emitter: how a training process says what happens, without ever waiting for anyone.

In: events, from any thread of the process.
Out: nothing that the caller could notice. Events reach the sidecar, or the
spool, by the sender thread.
Never: raises, blocks, touches a file or a socket, or validates on the
calling thread.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from shared.backlog import DROPPED_FIRST
from shared.clock import Clock, SystemClock
from shared.connection import check_endpoint
from shared.events import ConfigUpdated, Event, HistogramLogged, MetricsLogged, RunFinished
from shared.ids import check_run_id, check_source, new_session
from shared.outgoing import OutgoingStream
from shared.packing import kind_of
from shared.sender import Queued, Sender, SenderOptions

EVENT_COST_BYTES: Final = 300
VALUE_COST_BYTES: Final = 100
RESERVED_SHARE: Final = 0.25
"""Share of the queue that only events which are never dropped lightly may fill."""


@dataclass(frozen=True)
class EmitterStats:
    """Counts of events since the emitter started."""

    emitted: int = 0
    acknowledged: int = 0
    queued: int = 0
    """Emitted and neither acknowledged nor given up yet, in memory or in the spool."""
    spooled: int = 0
    dropped: int = 0
    refused: int = 0


class EventSink(Protocol):
    """What a producer needs: Emitter and NullEmitter both are one."""

    def emit(self, event: Event) -> None: ...

    def stats(self) -> EmitterStats: ...

    def close(self, timeout_s: float | None = None) -> bool: ...


class NullEmitter:
    """An emitter that records nothing, for a run without telemetry."""

    def __init__(self, run_id: str = "", source: str = "rank0") -> None:
        self.run_id = run_id
        self.source = source
        self.session = new_session()

    def emit(self, event: Event) -> None:
        """Forget the event."""

    def stats(self) -> EmitterStats:
        return EmitterStats()

    def close(self, timeout_s: float | None = None) -> bool:
        return True

    def __enter__(self) -> NullEmitter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Emitter:
    """One source of events of one run. Safe to use from any thread and after a fork:
    a child process has a session of its own from its first event on."""

    def __init__(
        self,
        endpoint: str,
        *,
        run_id: str,
        source: str,
        spool_dir: Path | None = None,
        close_timeout_s: float = 5.0,
        queue_max_bytes: int = SenderOptions.queue_max_bytes,
        clock: Clock | None = None,
    ) -> None:
        """Start the sender thread; a sidecar need not be there yet, or ever.

        Raises:
            ValueError: a bad endpoint, run id or source; nothing was started.
        """
        self.endpoint = check_endpoint(endpoint)
        self.run_id = check_run_id(run_id)
        self.source = check_source(source)
        self.close_timeout_s = close_timeout_s
        self._options = SenderOptions(queue_max_bytes=queue_max_bytes, spool_dir=spool_dir)
        self._clock = clock or SystemClock()
        self._reset()
        self._start()
        _LIVE.add(self)

    def emit(self, event: Event) -> None:
        """Queue an event, stamped now; its containers are copied, so they may change after."""
        try:
            if self._sender is None:
                self._start()
            cost = EVENT_COST_BYTES
            if type(event) is MetricsLogged:
                values = dict(event.values)
                cost += VALUE_COST_BYTES * len(values)
                event = MetricsLogged(kind=event.kind, step=event.step, values=values)
            else:
                event, cost = _copied(event), 4 * cost
            if self._is_closed or self._is_full(event, cost):
                self._overflow(event)
                return
            self._cost_in += cost
            self._queue.append(Queued(self._clock.wall_ns(), self._clock.monotonic_ns(), event))
        except Exception:
            # Not an event at all, or no thread to be had: training must not notice.
            self._failed += 1

    def stats(self) -> EmitterStats:
        """What became of the events so far. The counts are of slightly different moments."""
        sender = self._sender
        if sender is None:
            return EmitterStats()
        stream = sender.main.stream
        spooled = sum(frame.count for frame in list(stream.frames) if frame.is_spooled)
        dropped = sender.backlog.dropped.total() + self._dropped
        refused = sender.refused.total() + self._failed
        framed = stream.next_seq - stream.acknowledged
        return EmitterStats(
            emitted=sender.taken + len(self._queue) + self._dropped + self._failed,
            acknowledged=stream.acknowledged,
            queued=len(self._queue) + len(sender.backlog) + framed,
            spooled=spooled,
            dropped=dropped,
            refused=refused,
        )

    def close(self, timeout_s: float | None = None) -> bool:
        """Send what is left, for at most timeout_s (close_timeout_s by default).

        Returns True when all of it is on the sidecar's disk; otherwise the
        rest is in the spool, if there is one. May be called twice.
        """
        self._is_closed = True
        _LIVE.discard(self)
        if self._sender is None:
            return True
        return self._sender.close(self.close_timeout_s if timeout_s is None else timeout_s)

    def __enter__(self) -> Emitter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _reset(self) -> None:
        self.session = new_session()
        self._queue: deque[Queued] = deque()
        self._sender: Sender | None = None
        self._is_closed = False
        # Written by the emitting threads only, read by the sender; an update lost
        # to a race is made good when the sender finds the queue empty.
        self._cost_in = 0
        self._cost_out = 0
        self._failed = 0
        self._dropped = 0
        self._overflowed: Counter[str] = Counter()
        # Held for an increment only, never across I/O; re-entrant, since a signal
        # handler may emit.
        self._overflow_lock = threading.RLock()

    def _start(self) -> None:
        stream = OutgoingStream(1, self.run_id, self.session, self.source)
        self._sender = sender = Sender(
            self.endpoint, stream, self._queue, self._take_overflow, self._options, self._clock
        )
        threading.Thread(target=sender.run, name="telemetry-sender", daemon=True).start()

    def _is_full(self, event: Event, cost: int) -> bool:
        limit = self._options.queue_max_bytes // 2
        if kind_of(event) in DROPPED_FIRST:
            limit = int(limit * (1 - RESERVED_SHARE))
        return self._cost_in - self._cost_out + cost > limit

    def _overflow(self, event: Event) -> None:
        with self._overflow_lock:
            self._overflowed[kind_of(event)] += 1
            self._dropped += 1

    def _take_overflow(self) -> Counter[str]:
        """Runs on the sender thread, which takes the whole queue right after."""
        self._cost_out = self._cost_in
        if not self._overflowed:
            return Counter()
        with self._overflow_lock:
            taken, self._overflowed = self._overflowed, Counter()
        return taken

    def _after_fork_in_child(self) -> None:
        # The parent's socket, queue and spool lock are not ours: keep them from being
        # closed here, and begin again.
        _INHERITED.append((self._sender, self._queue))
        self._reset()


def _copied(event: Event) -> Event:
    if isinstance(event, ConfigUpdated):
        return ConfigUpdated(config=dict(event.config))
    if isinstance(event, RunFinished):
        return RunFinished(
            status=event.status, exit_code=event.exit_code, summary=dict(event.summary)
        )
    if isinstance(event, HistogramLogged):
        return HistogramLogged(
            kind=event.kind,
            step=event.step,
            name=event.name,
            edges=list(event.edges),
            counts=list(event.counts),
        )
    if not isinstance(event, Event):
        raise TypeError(f"not an event: {type(event).__name__}")
    return event


_LIVE: weakref.WeakSet[Emitter] = weakref.WeakSet()
_INHERITED: list[object] = []


def _close_all() -> None:
    for emitter in list(_LIVE):
        emitter.close()


def _reset_all() -> None:
    for emitter in list(_LIVE):
        emitter._after_fork_in_child()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_reset_all)
