"""Page server: uvicorn with bounds on connections and on their time.

In: an ASGI application, and a socket that is bound already.
Out: its answers, until it is told to stop.
Never: holds more than CONNECTIONS_MAX connections; waits longer than HEAD_MAX_S for a request, or
than ANSWER_MAX_S for a client that takes its answer slowly. Above the bound the oldest connection
is closed, so that idle ones can't lock a person out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
from typing import Any, ClassVar, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from telemetry.errors import CommandError

CONNECTIONS_MAX: Final = 64
HEAD_MAX_S: Final = 10.0
ANSWER_MAX_S: Final = 60.0
LOOK_S: Final = 2.0
HEAD_MAX_BYTES: Final = 32 * 1024
STOP_MAX_S: Final = 2


class BoundedProtocol(H11Protocol):
    """One connection, which ends where its client is too slow. Runs on the event loop."""

    at_work: ClassVar[dict[BoundedProtocol, None]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.at_work) >= CONNECTIONS_MAX:
            next(iter(self.at_work)).transport.abort()
        self.at_work[self] = None
        self._waits_since_s = self.loop.time()
        self._was_answering = False
        self._look_timer = self.loop.call_later(LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self.at_work.pop(self, None)
        self._look_timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Close the connection if a request, or the taking of an answer, lasts too long."""
        # An answer is complete for uvicorn once it is in the transport's buffer.
        is_made = self.cycle is None or self.cycle.response_complete
        is_answering = not is_made or self.transport.get_write_buffer_size() > 0
        now_s = self.loop.time()
        if is_answering != self._was_answering:
            self._was_answering, self._waits_since_s = is_answering, now_s
        limit_s = ANSWER_MAX_S if is_answering else HEAD_MAX_S
        if now_s - self._waits_since_s > limit_s:
            self.transport.abort()
            return
        self._look_timer = self.loop.call_later(LOOK_S, self._look)


def bound_socket(address: str, *, or_any_port: bool = False) -> socket.socket:
    """Return a listening socket at HOST:PORT.

    or_any_port: where the port is taken, take one that is free.

    Raises:
        CommandError: the address can't be had.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            made.bind((host, int(port)))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or not or_any_port:
                raise
            made.bind((host, 0))
        made.listen(CONNECTIONS_MAX)
    except OSError as exc:
        made.close()
        raise CommandError(
            f"--page {address}: {exc.strerror or exc}; choose another address, or 'off'"
        ) from exc
    return made


def link_of(listening: socket.socket, token: str = "") -> str:
    """Return the address for a browser on this machine, with the token where it is given."""
    host, port = listening.getsockname()[:2]
    name = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1", "::1") else host
    shown = f"[{name}]" if ":" in name else name
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")


def serve(app: ASGIApp, listening: socket.socket, *, exit_with_stdin: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, or until standard input closes."""
    settings: dict[str, Any] = {
        "http": BoundedProtocol, "ws": "none", "lifespan": "off", "loop": "asyncio",
        "log_config": None, "access_log": False, "server_header": False, "proxy_headers": False,
        "h11_max_incomplete_event_size": HEAD_MAX_BYTES, "timeout_keep_alive": int(HEAD_MAX_S),
        "timeout_graceful_shutdown": STOP_MAX_S, "backlog": CONNECTIONS_MAX,
    }  # fmt: skip
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    if exit_with_stdin:
        threading.Thread(target=_stop_with_stdin, args=(server,), daemon=True).start()
    server.run(sockets=[listening])


def _stop_with_stdin(server: uvicorn.Server) -> None:
    while os.read(0, 1024):
        pass
    server.should_exit = True
