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
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from shared.clock import Clock, SystemClock
from shared.closing import Closing
from shared.emitter import process
from shared.emitter.options import EmitterOptions
from shared.emitter.queue import EventQueue, held_event
from shared.emitter.sender import Sender
from shared.emitter.stats import EmitterStats
from shared.emitter.stream import OutgoingStream
from shared.emitter.whereabouts import endpoint_of, spool_dir_of
from shared.events import Event, RunStarted
from shared.ids import MAIN_SOURCE, check_run_id, check_source, new_run_id, new_session
from shared.launches import with_launch_id
from shared.wandb_variables import filled_in

log = logging.getLogger("telemetry.emitter")


class Emitter(Closing):
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
        queue_max_bytes: int = EmitterOptions.queue_max_bytes,
        series_interval_s: float = EmitterOptions.series_interval_s,
        clock: Clock | None = None,
        options: EmitterOptions | None = None,
    ) -> None:
        """Start the sender thread; no sidecar has to be running, now or later.

        Without an endpoint or a spool_dir those of the environment are taken
        (TELEMETRY_ENDPOINT, TELEMETRY_SPOOL_DIR). An address that only the environment
        gives and that can't be used is logged; the emitter then spools. Without a run_id
        this is a new run. With the run_id of an earlier run, that run is continued.
        options gives the limits that have no argument of their own.

        Raises:
            ValueError: a bad endpoint, run id or source; nothing was started.
        """
        self.endpoint = endpoint_of(endpoint)
        self.run_id = check_run_id(new_run_id() if run_id is None else run_id)
        self._source = check_source(source)
        self.close_timeout_s = close_timeout_s
        self._options = replace(
            options or EmitterOptions(),
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
        return self._source if self._sender is None else self._sender.source

    @property
    def spool_dir(self) -> Path | None:
        """Directory that keeps events while no sidecar acknowledges them; None for no spool."""
        return self._options.spool_dir

    def emit(self, event: Event) -> None:
        """Queue an event with the current times; its containers are copied first.

        Never raises or blocks: an event that can't be queued is counted as missing.
        """
        try:
            if self._sender is None and not self._is_closed:
                self._start()
            if type(event) is RunStarted:
                event = self._completed(event)
        except Exception:
            # No thread could be started now: the next event tries again.
            self._queue.refuse()
            return
        self._queue.put(event)

    def stats(self) -> EmitterStats:
        """Return the counts of events so far; they are read at slightly different moments."""
        return EmitterStats() if self._sender is None else self._sender.stats()

    def close(self, timeout_s: float | None = None) -> bool:
        """Send what is left, for at most timeout_s (close_timeout_s by default).

        Returns True when all of it is on the sidecar's disk; otherwise the
        rest is in the spool, if there is one. May be called twice.
        """
        self._is_closed = True
        self._queue.close()
        process.LIVE.discard(self)
        if self._sender is None:
            return True
        return self._sender.close(self.close_timeout_s if timeout_s is None else timeout_s)

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
        self._queue = EventQueue(self._options.queue_max_bytes, self._clock)
        self._sender: Sender | None = None
        self._is_closed = False
        # Held to start a thread, never across I/O. Re-entrant: a signal handler may emit.
        self._lock = threading.RLock()
        process.LIVE.add(self)

    def _start(self) -> Sender:
        with self._lock:
            if self._sender is not None:
                return self._sender
            sender = Sender(
                self.endpoint,
                self._queue,
                OutgoingStream(1, self.run_id, self.session, self._source),
                self._options,
                self._clock,
                is_worker=self._is_worker,
            )
            threading.Thread(
                target=self._run, args=(sender,), name="telemetry-sender", daemon=True
            ).start()
            self._sender = sender
            process.end_with_process()
            return sender

    def _run(self, sender: Sender) -> None:
        """Run the sender thread.

        It refers to this emitter, so that one which a script forgets without closing it is
        still there to be closed when the process ends.
        """
        sender.run()

    def _completed(self, event: RunStarted) -> RunStarted:
        """Return a copy with the fields that the environment gives.

        Read only now: a script may set these variables until the run begins.
        """
        held, _ = held_event(event)
        assert isinstance(held, RunStarted)
        return with_launch_id(filled_in(held, os.environ, self.run_id), os.environ)


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
