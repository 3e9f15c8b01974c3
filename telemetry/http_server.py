"""HTTP server: the standard library's, with bounds on connections and on their time.

In: a function that answers the path of a GET.
Out: its answers.
Never: holds more than CONNECTIONS_MAX connections, or one for longer than CONNECTION_MAX_S,
however slow its client is. Above the bound the oldest connection is closed.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

log = logging.getLogger("telemetry.http")

CONNECTIONS_MAX: Final = 16
CONNECTION_MAX_S: Final = 5.0

Answer = tuple[int, str, bytes]
"""Status, content type and body."""


class BoundedServer(ThreadingHTTPServer):
    """A server of GET requests, each on a thread of its own, up to a bound."""

    daemon_threads = True
    # Bound of the kernel's queue: connections above it take no descriptor of this process.
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        answer: Callable[[str], Answer],
        connection_max_s: float = CONNECTION_MAX_S,
    ) -> None:
        """Bind.

        Raises:
            OSError: the address can't be had.
        """
        self.answer = answer
        self._connection_max_s = connection_max_s
        self.refused = 0
        """Connections that were closed before they were answered."""
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection; close the oldest one where there are too many."""
        with self._lock:
            if len(self._open) >= CONNECTIONS_MAX:
                self._end(next(iter(self._open)))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection after it was served or ended."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End connections that take too long. Called by the server's loop twice a second."""
        with self._lock:
            late_s = time.monotonic() - self._connection_max_s
            for request in [r for r, began_s in self._open.items() if began_s < late_s]:
                self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log at debug level only: clients may go away while they are answered."""
        log.debug("http request of %s failed", client_address, exc_info=True)

    def _end(self, request: socket.socket) -> None:
        """Shut a connection down: its thread wakes up, finds it closed, and ends."""
        del self._open[request]
        self.refused += 1
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: BoundedServer

    def do_GET(self) -> None:
        status, content_type, body = self.server.answer(self.path)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: each scrape of /metrics is a request."""
