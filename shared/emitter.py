"""Emitter: how a training process says what happens, without ever waiting for anyone.

In: events, from any thread of the process.
Out: nothing that the caller could notice. Events reach the sidecar, or the
spool, by the sender thread.
Never: raises, blocks, touches a file or a socket, or validates on the
calling thread.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

import msgspec

from shared.backlog import DROPPED_FIRST, QUEUE_FULL
from shared.clock import Clock, SystemClock
from shared.connection import check_endpoint
from shared.events import (
    ConfigUpdated,
    Event,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
    Scalar,
)
from shared.ids import check_run_id, check_source, new_session
from shared.launches import with_launch_id
from shared.outgoing import OutgoingStream
from shared.packing import kind_of
from shared.sender import BY_SIDECAR, QUEUE_SHARE, Queued, Sender, SenderOptions
from shared.wandb_variables import filled_in

log = logging.getLogger("telemetry.emitter")

EVENT_COST_BYTES: Final = 300
VALUE_COST_BYTES: Final = 100
NOT_AN_EVENT: Final = "refused: not an event"
SPOOL_DAMAGED: Final = "spool damaged"
LAST_CLOSE_S: Final = 0.2
RESERVED_SHARE: Final = 0.25
"""Share of the queue that only events which are never dropped lightly may fill."""


@dataclass(frozen=True)
class EmitterStats:
    """Counts of events since the emitter started, Gap events of its own among them.

    emitted = acknowledged + queued + dropped + refused, when nothing moves.
    """

    emitted: int = 0
    acknowledged: int = 0
    queued: int = 0
    """Emitted and neither acknowledged nor given up yet, in memory or in the spool."""
    spooled: int = 0
    dropped: int = 0
    refused: int = 0
    dropped_by_reason: Mapping[str, int] = field(default_factory=dict, compare=False)
    refused_by_reason: Mapping[str, int] = field(default_factory=dict, compare=False)


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
        series_interval_s: float = SenderOptions.series_interval_s,
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
        self._options = SenderOptions(
            queue_max_bytes=queue_max_bytes,
            spool_dir=spool_dir,
            series_interval_s=series_interval_s,
        )
        self._clock = clock or SystemClock()
        self._reset()
        try:
            self._start()
        except RuntimeError as exc:
            # No thread to be had now: the first event tries again.
            log.warning("telemetry sender did not start: %s", exc)
        _LIVE.add(self)

    def emit(self, event: Event) -> None:
        """Queue an event, stamped now; its containers are copied, so they may change after."""
        try:
            if type(event) is MetricsLogged:
                values = dict(event.values)
                cost = EVENT_COST_BYTES + VALUE_COST_BYTES * len(values)
                event = MetricsLogged(kind=event.kind, step=event.step, values=values)
            else:
                event, cost = _copied(event)
            if self._sender is None and not self._is_closed:
                self._start()
            if type(event) is RunStarted:
                # Here the run begins: a script may set these variables until now.
                event = filled_in(event, os.environ, self.run_id)
                event = with_launch_id(event, os.environ)
            if self._is_closed or self._is_full(event, cost):
                self._note_missing(QUEUE_FULL, kind_of(event))
                return
            self._cost_in += cost
            self._queue.append(Queued(self._clock.wall_ns(), self._clock.monotonic_ns(), event))
        except Exception:
            # Not an event at all, or no thread to be had: training must not notice.
            self._note_missing(NOT_AN_EVENT, "unknown")

    def stats(self) -> EmitterStats:
        """What became of the events so far. The counts are of slightly different moments."""
        sender = self._sender
        if sender is None:
            return EmitterStats()
        stream = sender.main.stream
        dropped, refused = self._given_up.copy(), Counter(dict(sender.refused))
        not_events = dropped.pop(NOT_AN_EVENT, 0)
        taken_in = sender.taken + dropped.total() + not_events
        refused["not an event"] = not_events
        dropped[QUEUE_FULL] += sender.backlog.dropped.total()
        dropped[SPOOL_DAMAGED] = stream.lost_events
        in_queue = max(0, len(self._queue) - bool(self._missing))
        framed = stream.next_seq - stream.acknowledged - stream.lost_events
        return EmitterStats(
            emitted=taken_in + in_queue + sender.backlog.gaps,
            acknowledged=stream.acknowledged - sender.refused[BY_SIDECAR],
            queued=in_queue + len(sender.backlog) + framed,
            spooled=stream.spooled_events,
            dropped=dropped.total(),
            refused=refused.total(),
            dropped_by_reason=+dropped,
            refused_by_reason=+refused,
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
        # to a race is made good when the sender has taken the queue.
        self._cost_in = 0
        self._cost_out = 0
        # Held for an increment or to start a thread, never across I/O; re-entrant,
        # since a signal handler may emit.
        self._lock = threading.RLock()
        self._given_up: Counter[str] = Counter()
        """Events that never came into the queue, by reason."""
        self._missing: dict[str, Counter[str]] = {}
        """Those of them that no Gap tells of yet: by reason, the kinds."""

    def _start(self) -> None:
        with self._lock:
            if self._sender is not None:
                return
            sender = Sender(
                self.endpoint,
                OutgoingStream(1, self.run_id, self.session, self.source),
                self._queue,
                self._note_taken,
                self._take_missing,
                self._series,
                self._options,
                self._clock,
            )
            threading.Thread(target=sender.run, name="telemetry-sender", daemon=True).start()
            self._sender = sender

    def _is_full(self, event: Event, cost: int) -> bool:
        limit = self._options.queue_max_bytes * QUEUE_SHARE
        if kind_of(event) in DROPPED_FIRST:
            limit *= 1 - RESERVED_SHARE
        return self._cost_in - self._cost_out + cost > limit

    def _note_missing(self, reason: str, kind: str) -> None:
        """Count an event that does not go into the queue, and mark its place there."""
        with self._lock:
            self._given_up[reason] += 1
            if self._is_closed:
                return
            if not self._missing:
                self._queue.append(Queued(0, 0, None))
            self._missing.setdefault(reason, Counter())[kind] += 1

    def _note_taken(self) -> None:
        """Runs on the sender thread, which takes the whole queue right after."""
        self._cost_out = self._cost_in

    def _series(self) -> dict[str, Scalar]:
        """The statistics as metrics. Runs on the sender thread."""
        stats = self.stats()
        values: dict[str, Scalar] = {
            "telemetry/emitted_total": stats.emitted,
            "telemetry/acknowledged_total": stats.acknowledged,
            "telemetry/queued_events": stats.queued,
            "telemetry/spooled_events": stats.spooled,
            "telemetry/dropped_total": stats.dropped,
            "telemetry/refused_total": stats.refused,
        }
        for name in ("dropped", "refused"):
            for reason, count in getattr(stats, f"{name}_by_reason").items():
                values[f"telemetry/{name}_total/{reason.replace(' ', '_')}"] = count
        return values

    def _take_missing(self) -> dict[str, Counter[str]]:
        """Runs on the sender thread."""
        with self._lock:
            taken, self._missing = self._missing, {}
        return taken

    def _after_fork_in_child(self) -> None:
        # The parent's socket, queue and threads are not ours: keep them from being
        # closed here, and begin again.
        _INHERITED.append((self._sender, self._queue))
        if self._sender is not None:
            self._sender.abandon()
        self._reset()


def _copied(event: Event) -> tuple[Event, int]:
    """An event whose containers nobody else changes, and about what it takes in memory."""
    cost = 4 * EVENT_COST_BYTES
    if isinstance(event, HistogramLogged):
        copy = HistogramLogged(
            kind=event.kind,
            step=event.step,
            name=event.name,
            edges=list(event.edges),
            counts=list(event.counts),
        )
        return copy, cost + 40 * (len(copy.edges) + len(copy.counts))
    if isinstance(event, RunStarted):
        changes = {"tags": list(event.tags), "gpu_uuids": list(event.gpu_uuids)}
        started = msgspec.structs.replace(event, config=_copied_config(event.config), **changes)
        return started, cost + VALUE_COST_BYTES * len(event.config)
    if isinstance(event, ConfigUpdated):
        updated = ConfigUpdated(config=_copied_config(event.config))
        return updated, cost + VALUE_COST_BYTES * len(event.config)
    if isinstance(event, RunFinished):
        return msgspec.structs.replace(event, summary=_copied_config(event.summary)), cost
    if isinstance(event, MessageLogged):
        return event, cost + len(event.text)
    if not isinstance(event, Event):
        raise TypeError(f"not an event: {type(event).__name__}")
    return event, cost


def _copied_config(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied_config(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_copied_config(item) for item in value]
    return value


_LIVE: weakref.WeakSet[Emitter] = weakref.WeakSet()
_INHERITED: list[object] = []


def _close_all() -> None:
    """At exit: all of them together get the time that one would."""
    began_s = time.monotonic()
    for emitter in list(_LIVE):
        left_s = emitter.close_timeout_s - (time.monotonic() - began_s)
        emitter.close(max(left_s, LAST_CLOSE_S))


def _reset_all() -> None:
    for emitter in list(_LIVE):
        emitter._after_fork_in_child()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_reset_all)
