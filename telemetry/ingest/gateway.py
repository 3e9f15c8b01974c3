"""Gateway: the ROUTER socket through which emitters reach the sidecar.

In: frames from anyone who can connect.
Out: messages, each with the peer it came from.
Never: trusts a frame, or blocks on a peer that does not read.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import zmq

from shared.closing import Closing
from shared.emitter.connection import check_endpoint
from shared.events import DecodeError
from shared.locks import lock_unless_alive, write_holder
from shared.wire import FRAME_MAX_BYTES, Message, decode, encode
from telemetry.ingest.connections import ConnectionLimit

BATCH_MESSAGES: Final = 512
BATCH_BYTES: Final = 8 * 1024 * 1024
CONNECTIONS_MAX: Final = 4_000
ANY_PORT: Final = ":0"
"""End of a tcp address for which the kernel chooses a port."""
_OPTIONS: Final = (
    (zmq.LINGER, 200),
    (zmq.SNDTIMEO, 0),
    # No heartbeats: libzmq 4.3.5 aborts the process when one is due to a peer that it has
    # stopped reading. Emitters say that they live; the kernel notices a machine that is gone.
    (zmq.HEARTBEAT_IVL, 0),
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 60),
    (zmq.TCP_KEEPALIVE_INTVL, 10),
    (zmq.TCP_KEEPALIVE_CNT, 6),
    (zmq.HANDSHAKE_IVL, 5_000),
    (zmq.MAXMSGSIZE, FRAME_MAX_BYTES),
    # libzmq bounds the messages of a peer that it has read ahead by number, not by bytes:
    # a low number keeps the memory small.
    (zmq.RCVHWM, 16),
    (zmq.ROUTER_HANDOVER, 0),
)


class AddressInUse(Exception):
    """Another sidecar listens there."""


class Gateway(Closing):
    """A bound ROUTER socket. Not thread-safe: the reading thread owns it."""

    def __init__(
        self,
        address: str,
        *,
        allow_insecure: bool = False,
        connections_max: int = CONNECTIONS_MAX,
        pid: int | None = None,
    ) -> None:
        """Bind the socket.

        pid: the process that is named to whoever finds the address in use.

        Raises:
            ValueError: not an address, or one that other machines could reach.
            AddressInUse: another process is bound there.
            OSError: the path of an ipc socket can't be used.
        """
        check_bind(address, allow_insecure=allow_insecure)
        self.address = address
        self.counts: Counter[str] = Counter()
        self._lock_fd = _locked_ipc(address, pid or os.getpid())
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in _OPTIONS:
            self._socket.setsockopt(option, value)
        if address.startswith("tcp://["):
            self._socket.setsockopt(zmq.IPV6, 1)
        self._connections = ConnectionLimit(self._socket, connections_max)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        try:
            # As bytes: under LC_ALL=C a path that is not ASCII has no UTF-8 form.
            self._socket.bind(os.fsencode(address))  # type: ignore[arg-type]
        except zmq.ZMQError as exc:
            self.close()
            if exc.errno == zmq.EADDRINUSE:
                raise AddressInUse(f"{address} is in use by another process") from exc
            raise OSError(f"{address}: {exc.strerror}") from exc
        if address.startswith("tcp://") and address.endswith(ANY_PORT):
            self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def receive(self, timeout_s: float) -> Iterator[tuple[bytes, Message]]:
        """Wait for messages at most timeout_s, then yield those that are there, to a bound."""
        self._poller.poll(max(0, int(timeout_s * 1000)))
        size = 0
        for _ in range(BATCH_MESSAGES):
            try:
                peer, *frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                yield peer, decode(frames)
            except DecodeError:
                self.counts["malformed_messages_total"] += 1
            size += sum(map(len, frames))
            if size > BATCH_BYTES:
                return

    def watch(self, fd: int) -> None:
        """End the wait of `receive` also when this descriptor can be read."""
        self._poller.register(fd, zmq.POLLIN)

    @property
    def all_counts(self) -> dict[str, int]:
        """Counters of /metrics, by name. May be read from any thread."""
        return dict(self.counts) | dict(self._connections.counts)

    def send(self, peer: bytes, message: Message) -> None:
        """Send an answer to a peer. Dropped and counted if the peer is gone or does not read."""
        try:
            self._socket.send_multipart([peer, *encode(message)], zmq.DONTWAIT)
        except zmq.ZMQError:
            self.counts["unsent_replies_total"] += 1

    def close(self) -> None:
        """Unbind. May be called twice."""
        self._connections.close()
        self._socket.close()
        self._context.destroy()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def check_bind(address: str, *, allow_insecure: bool) -> None:
    """Refuse an address that is malformed, or that other machines could reach.

    Raises:
        ValueError: it says what may be given instead.
    """
    transport, _, rest = address.partition("://")
    if transport == "tcp" and address.endswith(ANY_PORT):
        check_endpoint(address.removesuffix(ANY_PORT) + ":1")
    else:
        check_endpoint(address)
    if transport == "tcp" and ":" in rest.rpartition(":")[0] and "[" not in rest:
        raise ValueError(f"bind address {address!r}: write an IPv6 address in brackets, [::1]")
    if transport != "tcp" or allow_insecure:
        return
    host = rest.rpartition(":")[0].strip("[]")
    is_loopback = host == "localhost"
    with contextlib.suppress(ValueError):
        is_loopback = ipaddress.ip_address(host).is_loopback
    if not is_loopback:
        raise ValueError(
            f"bind address {address!r} can be reached from other machines and is not encrypted; "
            "bind to 127.0.0.1 or an ipc path, or say --insecure-network"
        )


def _locked_ipc(address: str, pid: int) -> int:
    """Lock a file beside an ipc path, and return its descriptor; -1 for other transports.

    Without the lock, a second bind would silently take the path away from the first.
    """
    transport, _, path = address.partition("://")
    if transport != "ipc":
        return -1
    Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock_unless_alive(fd)
    except BlockingIOError as exc:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise AddressInUse(f"{address} is in use by the process with pid {holder}") from exc
    except OSError as exc:
        os.close(fd)
        raise OSError(exc.errno, f"{path} can't be locked: {exc.strerror}") from exc
    write_holder(fd, f"{pid}\n")
    return fd
