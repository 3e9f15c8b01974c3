"""HTTP server: the standard library's, with a bound on connections and on their time.

In: a function that answers the path of a GET.
Out: its answers.
Never: holds more than a few connections, or one for longer than a few seconds, however
slowly its client sends or reads: the oldest makes way for the newest.
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
    """Serves GET requests, each on a thread of its own, to a bound."""

    daemon_threads = True
    # The kernel's: connections above it are refused, and take nothing from this process.
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], answer: Callable[[str], Answer]) -> None:
        """Bind.

        Raises:
            OSError: the address can't be had.
        """
        self.answer = answer
        self.refused = 0
        """Connections that were closed before they were answered."""
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection; the oldest one ends where there are too many."""
        with self._lock:
            if len(self._open) >= CONNECTIONS_MAX:
                self._end(next(iter(self._open)))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that has been served, or was ended."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End connections that take too long. The server's loop calls it twice a second."""
        with self._lock:
            late_s = time.monotonic() - CONNECTION_MAX_S
            for request in [r for r, began_s in self._open.items() if began_s < late_s]:
                self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away while it is answered is no news."""
        log.debug("http request of %s failed", client_address, exc_info=True)

    def _end(self, request: socket.socket) -> None:
        """Wake the thread of a connection: it finds it closed, and ends."""
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
        """Requests are not news."""
