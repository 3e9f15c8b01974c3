"""Connections: a bound on the number of peers that are connected at once.

In: events of libzmq's monitor of a bound socket.
Out: connections above the bound closed again, the newest first.
Never: comes near the limit of file descriptors: libzmq aborts the process where it
can't accept a connection for lack of one.

Runs on a thread of its own that does nothing else: libzmq waits for the reader of its monitor.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from collections import Counter
from typing import Final

import zmq

log = logging.getLogger("telemetry.ingest.gateway")

_EVENTS: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED
_EVENT: Final = struct.Struct("=Hi")
"""First frame of an event of the monitor: its kind and its value, here a descriptor."""

REFUSED: Final = "refused_connections_total"


class ConnectionLimit:
    """Watches the connections of one socket, from before its bind to its close."""

    def __init__(self, watched: zmq.Socket[bytes], connections_max: int) -> None:
        self.counts: Counter[str] = Counter()
        self.open: set[int] = set()
        """File descriptors of the connections that are open now."""
        self._max = connections_max
        self._watched = watched
        self._events = watched.get_monitor_socket(_EVENTS)
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching; before the socket is closed. May be called twice."""
        if self._thread.is_alive():
            # Ends the thread by its last event; the monitor is closed with the socket.
            self._watched.monitor(None, 0)
            self._thread.join(5)

    def _run(self) -> None:
        while True:
            # By hand: pyzmq's own reader is slower than libzmq accepts in a burst.
            kind, fd = _EVENT.unpack(self._events.recv())
            self._events.recv()  # the endpoint
            if kind == zmq.EVENT_MONITOR_STOPPED:
                break
            if kind == zmq.EVENT_DISCONNECTED:
                self.open.discard(fd)
                continue
            self.open.add(fd)
            if len(self.open) > self._max:
                self._refuse(fd)
        self._events.close(0)

    def _refuse(self, fd: int) -> None:
        """Shut a connection down; libzmq then closes it, as if its peer had gone away."""
        self.counts[REFUSED] += 1
        if self.counts[REFUSED] == 1:
            log.warning(
                "%d peers are connected, as many as file descriptors allow: others have to "
                "wait; raise the limit of open files (ulimit -n) for more",
                self._max,
            )
        # The descriptor may be closed by now and belong to another file: `shutdown` then fails.
        with contextlib.suppress(OSError):
            connection = socket.socket(fileno=fd)
            try:
                connection.shutdown(socket.SHUT_RDWR)
            finally:
                connection.detach()
