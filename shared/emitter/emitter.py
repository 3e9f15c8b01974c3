"""Emitter: the object through which a training process records events without waiting.

In: events, from any thread of the process.
Out: nothing on the calling thread. The sender thread takes the events to the
sidecar, or to the spool.
Never: raises, blocks, touches a file or a socket, or validates on the
calling thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from shared.clock import Clock, SystemClock
from shared.emitter import process
from shared.emitter.backlog import DROPPED_FIRST, DROPPED_NEVER, QUEUE_FULL
from shared.emitter.held import EVENT_COST_BYTES, held_event
from shared.emitter.packing import kind_of
from shared.emitter.sender import BY_SIDECAR, NOT_AN_EVENT, Queued, Sender, SenderOptions
from shared.emitter.stream import OutgoingStream
from shared.emitter.whereabouts import endpoint_of, spool_dir_of
from shared.events import Event, MetricsLogged, RunStarted, Scalar
from shared.ids import MAIN_SOURCE, check_run_id, check_source, new_run_id, new_session
from shared.launches import with_launch_id
from shared.values.rows import VALUE_COST_BYTES, held_row
from shared.wandb_variables import filled_in

log = logging.getLogger("telemetry.emitter")

SPOOL_DAMAGED: Final = "spool damaged"
RESERVED_SHARE: Final = 1 / 32
"""Share of the memory that the kinds in DROPPED_FIRST may not fill."""
BEYOND_BYTES: Final = 1024 * 1024
"""Bytes that the kinds in DROPPED_NEVER may take beyond the bound."""
YIELD_SHARE: Final = 0.5
"""If the queue is filled above this share, emit() yields to the sender thread: for at most
the interpreter's switch interval (5 ms), and never for I/O."""
YIELD_EVERY: Final = 64
"""Above YIELD_SHARE, emit() yields once in so many queued events."""
YIELD_ALWAYS_SHARE: Final = 0.9
"""Above this share, emit() yields for each event."""


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
    """The interface that a producer of events needs; Emitter and NullEmitter have it."""

    def emit(self, event: Event) -> None: ...

    def stats(self) -> EmitterStats: ...

    def close(self, timeout_s: float | None = None) -> bool: ...


class NullEmitter:
    """An emitter that records nothing, for a run without telemetry."""

    def __init__(self, run_id: str = "", source: str = MAIN_SOURCE) -> None:
        self.run_id = run_id
        self.source = source
        self.session = new_session()

    def emit(self, event: Event) -> None:
        """Do nothing with the event."""

    def stats(self) -> EmitterStats:
        return EmitterStats()

    def close(self, timeout_s: float | None = None) -> bool:
        return True

    def __enter__(self) -> NullEmitter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Emitter:
    """One source of events of one run. Safe to use from any thread and after a fork.

    A forked child gets a session of its own with its first event, as a worker of the
    source (`rank0.worker0`). A pickled or copied emitter gets a session of its own too.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        run_id: str | None = None,
        source: str = MAIN_SOURCE,
        spool_dir: str | os.PathLike[str] | None = None,
        close_timeout_s: float = 5.0,
        queue_max_bytes: int = SenderOptions.queue_max_bytes,
        series_interval_s: float = SenderOptions.series_interval_s,
        clock: Clock | None = None,
    ) -> None:
        """Start the sender thread; no sidecar has to be running, now or later.

        Without an endpoint or a spool_dir those of the environment are taken
        (TELEMETRY_ENDPOINT, TELEMETRY_SPOOL_DIR). An address that only the environment
        gives and that can't be used is logged; the emitter then spools. Without a run_id
        this is a new run. With the run_id of an earlier run, that run is continued.

        Raises:
            ValueError: a bad endpoint, run id or source; nothing was started.
        """
        self.endpoint = endpoint_of(endpoint)
        self.run_id = check_run_id(new_run_id() if run_id is None else run_id)
        self._source = check_source(source)
        self.close_timeout_s = close_timeout_s
        self._options = SenderOptions(
            queue_max_bytes=queue_max_bytes,
            spool_dir=spool_dir_of(spool_dir),
            series_interval_s=series_interval_s,
        )
        self._is_worker = process.is_of_emitting_parent(self.run_id, self._source)
        self._clock = clock or SystemClock()
        self._reset()
        try:
            self._start()
        except RuntimeError as exc:
            # The thread could not be started now: the first event tries again.
            log.warning("telemetry sender did not start: %s", exc)

    @property
    def source(self) -> str:
        """Source name of this process; that of a worker is known only after its first event."""
        return self._source if self._sender is None else self._sender.main.stream.source

    @property
    def spool_dir(self) -> Path | None:
        """Directory that keeps events while no sidecar acknowledges them; None for no spool."""
        return self._options.spool_dir

    def emit(self, event: Event) -> None:
        """Queue an event with the current times; its containers are copied first.

        Never raises or blocks: an event that can't be queued is counted as missing.
        """
        try:
            if type(event) is MetricsLogged and not event.left_out:
                values, cost = held_row(event.values)
                cost += EVENT_COST_BYTES + VALUE_COST_BYTES * len(values)
                event = MetricsLogged(kind=event.kind, step=event.step, values=values)
            else:
                event, cost = held_event(event)
                if type(event) is RunStarted:
                    # Read only now: a script may set these variables until the run begins.
                    event = filled_in(event, os.environ, self.run_id)
                    event = with_launch_id(event, os.environ)
            sender = self._sender
            if sender is None or self._is_closed:
                if self._is_closed:
                    self._note_missing(QUEUE_FULL, kind_of(event))
                    return
                sender = self._start()
            queued = self._cost_in - self._cost_out + cost
            if queued > sender.room * YIELD_SHARE and not self._has_room(event, queued, sender):
                self._note_missing(QUEUE_FULL, kind_of(event))
                return
            self._cost_in += cost
            self._queue.append((self._wall_ns(), self._mono_ns(), event, cost))
        except Exception:
            # Not an event, or no thread could be started: training must not be disturbed.
            self._note_missing(NOT_AN_EVENT, "unknown")

    def stats(self) -> EmitterStats:
        """Return the counts of events so far; they are read at slightly different moments."""
        sender = self._sender
        if sender is None:
            return EmitterStats()
        stream = sender.main.stream
        dropped, refused = self._given_up.copy(), Counter(dict(sender.refused))
        not_events = dropped.pop(NOT_AN_EVENT, 0)
        taken_in = sender.taken + sender.split + dropped.total() + not_events
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
        process.LIVE.discard(self)
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

    def __reduce__(self) -> Any:
        """Pickle what the emitter was made of: a copy begins with a session of its own."""
        made_of = {
            "endpoint": self.endpoint,
            "run_id": self.run_id,
            "_source": self._source,
            "close_timeout_s": self.close_timeout_s,
            "_options": self._options,
            "_clock": self._clock,
        }
        return _revived, (type(self), made_of, self._is_worker, process.token())

    def begin_again_in_child(self) -> None:
        """Start over in a forked child, without the parent's socket, queue and threads."""
        # A reference is kept so that the parent's objects are not finalized in this process.
        _INHERITED.append((self._sender, self._queue))
        if self._sender is not None:
            self._sender.abandon()
        self._is_worker = True
        self._reset()

    def _reset(self) -> None:
        self.session = new_session()
        self._wall_ns, self._mono_ns = self._clock.wall_ns, self._clock.monotonic_ns
        self._queue: deque[Queued] = deque()
        self._sender: Sender | None = None
        self._is_closed = False
        # Their difference is the memory that the queue takes. The emitting threads write
        # the first, the sender thread the second. No lock is held: an update that is lost
        # to a race is corrected when the queue is empty.
        self._cost_in = 0
        self._cost_out = 0
        # Held for an increment or to start a thread, never across I/O. Re-entrant,
        # because a signal handler may emit.
        self._lock = threading.RLock()
        self._given_up: Counter[str] = Counter()
        """Number of events that were not put into the queue, by reason."""
        self._missing: dict[str, Counter[str]] = {}
        """Counts by kind, for each reason, of such events that no Gap event reports yet."""
        process.LIVE.add(self)

    def _start(self) -> Sender:
        with self._lock:
            if self._sender is not None:
                return self._sender
            sender = Sender(
                self.endpoint,
                OutgoingStream(1, self.run_id, self.session, self._source),
                self._queue,
                self._note_taken,
                self._take_missing,
                self._series,
                self._options,
                self._clock,
                is_worker=self._is_worker,
            )
            threading.Thread(target=sender.run, name="telemetry-sender", daemon=True).start()
            self._sender = sender
            process.end_with_process()
            return sender

    def _has_room(self, event: Event, queued: int, sender: Sender) -> bool:
        """True if an event may still be queued although the queue is more than half full."""
        if len(self._queue) % YIELD_EVERY == 0 or queued > sender.room * YIELD_ALWAYS_SHARE:
            time.sleep(0)
            queued = self._cost_in - self._cost_out
        kind = kind_of(event)
        if kind in DROPPED_FIRST:
            return queued <= sender.room - self._options.queue_max_bytes * RESERVED_SHARE
        return queued <= sender.room + (BEYOND_BYTES if kind in DROPPED_NEVER else 0)

    def _note_missing(self, reason: str, kind: str) -> None:
        """Count an event that is not queued, and mark its place in the queue."""
        with self._lock:
            self._given_up[reason] += 1
            if self._is_closed:
                return
            if not self._missing:
                self._queue.append((0, 0, None, 0))
            self._missing.setdefault(reason, Counter())[kind] += 1

    def _note_taken(self, cost: int) -> None:
        """Subtract the cost of events taken out of the queue. Runs on the sender thread."""
        self._cost_out += cost
        if not self._queue:
            self._cost_out = self._cost_in

    def _series(self) -> dict[str, Scalar]:
        """Return the statistics as metrics. Runs on the sender thread."""
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
        """Return the unreported missing events, and forget them. Runs on the sender thread."""
        with self._lock:
            taken, self._missing = self._missing, {}
        return taken


def _revived(
    kind: type[Emitter], made_of: Mapping[str, Any], was_worker: bool, token: str
) -> Emitter:
    """Make an emitter from a pickled one; in another process it becomes a worker."""
    emitter = kind.__new__(kind)
    vars(emitter).update(made_of)
    emitter._is_worker = was_worker or token != process.token()
    emitter._reset()
    return emitter


_INHERITED: Final[list[object]] = []
"""Objects of the parent process that a forked child must not finalize."""
