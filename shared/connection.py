"""Connection: the one ZeroMQ socket over which an emitter reaches the sidecar.

In: messages to send.
Out: messages that have come.
Never: blocks, raises for anything the network does, or numbers events.

Not thread-safe: the sender thread owns it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Final

import zmq

from shared.events import DecodeError
from shared.wire import FRAME_MAX_BYTES, Message, decode, encode

log = logging.getLogger("telemetry.emitter")

# Each for a measured reason.
_OPTIONS: Final = (
    (zmq.LINGER, 0),  # -1 hangs at an explicit close
    (zmq.SNDTIMEO, 0),
    (zmq.IMMEDIATE, 1),  # queue only to a peer that is there
    (zmq.HEARTBEAT_IVL, 2_000),  # a frozen or vanished peer shows as one
    (zmq.HEARTBEAT_TIMEOUT, 10_000),
    (zmq.RECONNECT_IVL, 100),
    (zmq.RECONNECT_IVL_MAX, 5_000),
    (zmq.HANDSHAKE_IVL, 5_000),
    (zmq.MAXMSGSIZE, FRAME_MAX_BYTES),
)


OPEN_RETRY_S: Final = 1.0
"""Between two tries to make a socket: a process may be out of file descriptors for a while."""


class Connection:
    """A DEALER socket that can be rebuilt, and that may not be there for a while."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.malformed = 0
        self.failures = 0
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self._retry_at_s = 0.0

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, message: Message) -> bool:
        """Hand a message to ZeroMQ; False where nobody is connected or its queue is full."""
        socket = self._open()
        if socket is None:
            return False
        try:
            socket.send_multipart(encode(message), zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until a message can be received, at most timeout_s."""
        socket = self._open()
        if socket is not None:
            try:
                return bool(self._poller.poll(int(timeout_s * 1000)))
            except zmq.ZMQError:
                self.rebuild()
        time.sleep(timeout_s)
        return False

    def receive(self) -> Iterator[Message]:
        """The messages that have come, without waiting."""
        while (socket := self._open()) is not None:
            try:
                frames = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.ZMQError:
                return
            try:
                yield decode(frames)
            except DecodeError:
                self.malformed += 1

    def rebuild(self) -> None:
        """Start over with a new socket: what was queued in the old one is gone."""
        if self._socket is not None:
            self._poller.unregister(self._socket)
            self._socket.close(0)
            self._socket = None

    def close(self) -> None:
        """Close socket and context. May be called twice."""
        self.rebuild()
        self._retry_at_s = float("inf")
        self._context.destroy(0)

    def _open(self) -> zmq.Socket[bytes] | None:
        """The socket, made anew where there is none; None where that can't be done now."""
        if self._socket is None and time.monotonic() >= self._retry_at_s:
            self._retry_at_s = time.monotonic() + OPEN_RETRY_S
            try:
                self._socket = _connected(self._context, self.endpoint)
                # One poller for the socket's life: socket.poll() makes one each time.
                self._poller.register(self._socket, zmq.POLLIN)
                self._retry_at_s = 0.0
            except zmq.ZMQError as exc:
                if self.failures == 0:
                    log.warning(
                        "no socket for %s, retry_s=%g: %s", self.endpoint, OPEN_RETRY_S, exc
                    )
                self.failures += 1
        return self._socket


def _connected(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    try:
        for option, value in _OPTIONS:
            socket.setsockopt(option, value)
        socket.connect(endpoint)
    except zmq.ZMQError:
        socket.close(0)
        raise
    return socket


def check_endpoint(endpoint: str) -> str:
    """Return endpoint unchanged.

    Raises:
        ValueError: it is neither `ipc://PATH` nor `tcp://HOST:PORT`.
    """
    transport, _, address = endpoint.partition("://")
    if transport == "ipc" and address:
        if len(address.encode()) > 107:
            raise ValueError(
                f"endpoint {endpoint!r}: an ipc path has at most 107 bytes; choose a shorter one"
            )
        return endpoint
    host, _, port = address.rpartition(":")
    if transport == "tcp" and host and port.isdigit() and 0 < int(port) < 65536:
        return endpoint
    raise ValueError(f"endpoint {endpoint!r} is neither 'ipc://PATH' nor 'tcp://HOST:PORT'")
