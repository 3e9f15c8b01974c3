"""HTTP: slow clients take neither threads nor descriptors, and keep nobody waiting."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from telemetry.http_server import CONNECTIONS_MAX, Answer, BoundedServer
from tests.telemetry.sidecar_process import http_get
from tests.telemetry.waiting import wait_until


@contextmanager
def serving(answer: Callable[[str], Answer], **limits: float) -> Iterator[BoundedServer]:
    with BoundedServer(("127.0.0.1", 0), answer, **limits) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def echo(path: str) -> Answer:
    return 200, "text/plain", path.encode()


@pytest.fixture
def server() -> Iterator[BoundedServer]:
    with serving(echo) as server:
        yield server


@pytest.fixture
def impatient() -> Iterator[BoundedServer]:
    with serving(echo, connection_max_s=0.3) as server:
        yield server


def address(server: BoundedServer) -> str:
    return "{}:{}".format(*server.server_address[:2])


def slow_client(server: BoundedServer, sent: bytes = b"GET /slow HTTP/1.1\r\nX: ") -> socket.socket:
    client = socket.create_connection(server.server_address[:2], 5)
    client.sendall(sent)
    return client


def test_a_request_is_answered(server):
    """The plain way."""
    assert http_get(address(server), "/x") == (200, "/x")


def test_slow_clients_take_neither_threads_nor_descriptors_without_bound(server):
    """300 of them, each in the middle of its request; the next honest one is answered at once."""
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    clients = [slow_client(server) for _ in range(300)]
    began_s = time.monotonic()

    answer = http_get(address(server), "/x")
    took_s = time.monotonic() - began_s
    threads = threading.active_count() - before[0]
    served = len(os.listdir("/proc/self/fd")) - before[1] - len(clients)  # noqa: PTH208
    for client in clients:
        client.close()

    assert answer == (200, "/x") and took_s < 2
    assert threads <= CONNECTIONS_MAX + 2 and served <= CONNECTIONS_MAX + 2


@pytest.mark.parametrize("dribble", [b"", b"X-A: 1\r\n"])
def test_a_client_that_never_comes_to_an_end_is_ended(impatient, dribble):
    """One that says nothing, and one that sends a header now and then."""
    client = slow_client(impatient, b"GET / HTTP/1.1\r\n")
    client.settimeout(0.02)

    def is_ended() -> bool:
        try:
            client.sendall(dribble)
            return client.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    wait_until(is_ended, 10)
    client.close()

    assert impatient.refused == 1


def test_a_client_that_does_not_read_its_answer_is_ended():
    """A page of megabytes fills the kernel's buffers."""
    page = bytes(32 * 1024 * 1024)
    before = threading.active_count()
    with serving(lambda _: (200, "text/plain", page), connection_max_s=0.3) as server:
        client = slow_client(server, b"GET / HTTP/1.1\r\n\r\n")
        wait_until(lambda: server.refused == 1, 10)
        wait_until(lambda: threading.active_count() <= before + 1, 10)
        client.close()
