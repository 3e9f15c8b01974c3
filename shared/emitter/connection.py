"""Connection: the one ZeroMQ socket over which an emitter reaches the sidecar.

In: messages to send.
Out: messages that were received.
Never: blocks, raises for anything the network does, or numbers events.

Not thread-safe: the sender thread owns it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import zmq

from shared.closing import Closing
from shared.emitter.notices import Notices
from shared.events import DecodeError
from shared.text import clean
from shared.values.scalars import type_name
from shared.wire import FRAME_MAX_BYTES, Message, decode, encode

# Socket options. Each is here because a test failed or hung without it.
_OPTIONS: Final = (
    (zmq.LINGER, 0),  # -1 hangs at an explicit close
    (zmq.SNDTIMEO, 0),
    # No ZMTP heartbeats: libzmq aborts where one meets an engine whose reading has
    # stopped. A frozen or vanished peer shows by answers that do not come.
    (zmq.IMMEDIATE, 1),  # queue only to a peer that is there
    (zmq.RECONNECT_IVL, 100),
    (zmq.RECONNECT_IVL_MAX, 5_000),
    (zmq.HANDSHAKE_IVL, 5_000),
    (zmq.MAXMSGSIZE, FRAME_MAX_BYTES),
)

IPC_PATH_MAX_BYTES: Final = 107
NAME_IN_DIRECTORY_MAX_BYTES: Final = 76
"""Limit on the file name of a socket, so that it fits behind `/proc/PID/fd/FD/`."""

OPEN_RETRY_S: Final = 1.0
"""Time between two tries to make a socket: a process may lack file descriptors for a while."""


class Connection(Closing):
    """A DEALER socket that can be rebuilt, and that may not be there for a while."""

    def __init__(self, endpoint: str | None) -> None:
        """Begin without a socket; it is made at the first use. Without an endpoint none is made."""
        self.endpoint = endpoint
        self._notices = Notices()
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self._retry_at_s = 0.0
        self._directory: SocketDirectory | None = None

    def send(self, message: Message) -> bool:
        """Hand a message to ZeroMQ; return False if no peer is connected or the queue is full."""
        socket = self._open()
        if socket is None:
            return False
        try:
            socket.send_multipart(encode(message), zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    @property
    def is_connected(self) -> bool:
        """True if a peer is connected and its queue has room for a message."""
        try:
            events = 0 if self._socket is None else self._socket.getsockopt(zmq.EVENTS)
        except zmq.ZMQError:
            return False
        return isinstance(events, int) and bool(events & zmq.POLLOUT)

    def wait(self, timeout_s: float) -> bool:
        """Wait at most timeout_s for a message; return True if one can be received."""
        socket = self._open()
        if socket is not None:
            try:
                return bool(self._poller.poll(int(timeout_s * 1000)))
            except zmq.ZMQError:
                self.rebuild()
        time.sleep(timeout_s)
        return False

    def receive(self) -> Iterator[Message]:
        """Yield the messages that have arrived, without waiting. Malformed ones are skipped."""
        while (socket := self._open()) is not None:
            try:
                frames = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.ZMQError:
                return
            try:
                yield decode(frames)
            except DecodeError as exc:
                self._notices.warn(
                    "malformed", f"telemetry skips a message: {clean(str(exc), 200)}"
                )

    def rebuild(self) -> None:
        """Close the socket so that the next use makes a new one; its queued messages are lost."""
        if self._socket is not None:
            self._poller.unregister(self._socket)
            self._socket.close(0)
            self._socket = None
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def close(self) -> None:
        """Close socket and context. May be called twice."""
        self.rebuild()
        self._retry_at_s = float("inf")
        self._context.destroy(0)

    def _open(self) -> zmq.Socket[bytes] | None:
        """Return the socket, made now if there is none; None if it can't be made now."""
        if self.endpoint is None:
            return None
        if self._socket is None and time.monotonic() >= self._retry_at_s:
            self._retry_at_s = time.monotonic() + OPEN_RETRY_S
            try:
                self._socket = _connected(self._context, self._short_address(self.endpoint))
                # One poller for the socket's life: socket.poll() makes one each time.
                self._poller.register(self._socket, zmq.POLLIN)
                self._retry_at_s = 0.0
            except FileNotFoundError:
                pass  # the directory of the socket will come with the sidecar
            except (zmq.ZMQError, OSError) as exc:
                shown = f"{clean(self.endpoint, 200)}, retry_s={OPEN_RETRY_S:g}: {exc}"
                self._notices.warn("no socket", f"no socket for {shown}")
        return self._socket

    def _short_address(self, endpoint: str) -> str:
        """Return an address of the same socket that fits into the 107 bytes of an ipc path."""
        path = endpoint.removeprefix("ipc://")
        if path == endpoint or len(os.fsencode(path)) <= IPC_PATH_MAX_BYTES:
            return endpoint
        self._directory = SocketDirectory(Path(path).parent)
        return f"ipc://{self._directory.path}/{Path(path).name}"


def _connected(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    try:
        for option, value in _OPTIONS:
            socket.setsockopt(option, value)
        if "[" in endpoint:
            socket.setsockopt(zmq.IPV6, 1)
        # As bytes: under LC_ALL=C a path that is not ASCII has no UTF-8 form.
        socket.connect(os.fsencode(endpoint))  # type: ignore[arg-type]
    except zmq.ZMQError:
        socket.close(0)
        raise
    return socket


class SocketDirectory:
    """An open directory, which gives the sockets inside it a short path under /proc."""

    def __init__(self, directory: Path) -> None:
        """Open the directory.

        Raises:
            OSError: the directory does not exist, or can't be searched.
        """
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # The kernel resolves this link itself, so the length of the real path does not matter.
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        """Close the directory. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def check_address(endpoint: Any) -> str:
    """Return endpoint unchanged if a client can connect to such an address.

    Raises:
        ValueError: it is neither `ipc://PATH` nor `tcp://HOST:PORT`.
    """
    endpoint_text = endpoint if isinstance(endpoint, str) else ""
    transport, _, address = endpoint_text.partition("://")
    if transport == "ipc" and address and "\0" not in address:
        if len(os.fsencode(Path(address).name)) > NAME_IN_DIRECTORY_MAX_BYTES:
            raise ValueError(
                f"endpoint {_shown(endpoint)}: the name of an ipc socket has at most "
                f"{NAME_IN_DIRECTORY_MAX_BYTES} bytes; choose a shorter one"
            )
        return endpoint_text
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if transport == "tcp" and host and is_port and len(endpoint_text) < 300:
        return endpoint_text
    raise ValueError(f"endpoint {_shown(endpoint)} is neither 'ipc://PATH' nor 'tcp://HOST:PORT'")


def check_endpoint(endpoint: str) -> str:
    """Return endpoint unchanged if a server can bind such an address.

    Raises:
        ValueError: as check_address; or an ipc path of more than 107 bytes.
    """
    path = check_address(endpoint).removeprefix("ipc://")
    if path != endpoint and len(os.fsencode(path)) > IPC_PATH_MAX_BYTES:
        raise ValueError(
            f"endpoint {_shown(endpoint)}: an ipc path has at most {IPC_PATH_MAX_BYTES} bytes; "
            "choose a shorter one"
        )
    return endpoint


def _shown(endpoint: object) -> str:
    return repr(clean(endpoint, 150)) if isinstance(endpoint, str) else type_name(endpoint)
