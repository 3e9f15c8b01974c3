"""Connection: the one ZeroMQ socket over which an emitter reaches the sidecar.

In: messages to send.
Out: messages that have come.
Never: blocks, raises for anything the network does, or numbers events.

Not thread-safe: the sender thread owns it.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Final

import zmq

from shared.events import DecodeError
from shared.wire import FRAME_MAX_BYTES, Message, decode, encode

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


class Connection:
    """A DEALER socket that can be rebuilt."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.malformed = 0
        self._context = zmq.Context()
        self._socket = self._connected()

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
        try:
            self._socket.send_multipart(encode(message), zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until a message can be received, at most timeout_s."""
        return bool(self._socket.poll(int(timeout_s * 1000)))

    def receive(self) -> Iterator[Message]:
        """The messages that have come, without waiting."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.ZMQError:
                return
            try:
                yield decode(frames)
            except DecodeError:
                self.malformed += 1

    def rebuild(self) -> None:
        """Start over with a new socket: what was queued in the old one is gone."""
        self._socket.close(0)
        self._socket = self._connected()

    def close(self) -> None:
        """Close socket and context. May be called twice."""
        self._socket.close(0)
        self._context.destroy(0)

    def _connected(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        for option, value in _OPTIONS:
            socket.setsockopt(option, value)
        socket.connect(self.endpoint)
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
