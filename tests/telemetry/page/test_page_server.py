"""The server of the page, with small limits: slow clients are closed, and others are answered."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from telemetry.page import page_server
from telemetry.page.page_server import bound_socket, link_of
from tests.telemetry.waiting import wait_until

LARGE = b"x" * 50_000_000


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with more than a socket takes at once, at /large."""
    body = LARGE if scope["path"] == "/large" else b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server on a thread, whose limits are parts of a second."""
    monkeypatch.setattr(page_server, "LOOK_S", 0.05)
    monkeypatch.setattr(page_server, "HEAD_MAX_S", 0.5)
    monkeypatch.setattr(page_server, "ANSWER_MAX_S", 0.5)
    servers: list[uvicorn.Server] = []
    made = uvicorn.Server

    def kept(config: uvicorn.Config) -> uvicorn.Server:
        servers.append(made(config))
        return servers[-1]

    monkeypatch.setattr(page_server.uvicorn, "Server", kept)
    with bound_socket("127.0.0.1:0") as listening:
        thread = threading.Thread(target=page_server.serve, args=(app, listening))
        thread.start()
        wait_until(lambda: servers and servers[0].started)
        yield listening.getsockname()[1]
        servers[0].should_exit = True
        thread.join(20)


def connected(port: int) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", port))
    link.settimeout(20)
    return link


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: lo"])
def test_a_client_that_does_not_finish_its_request_is_closed(port, said):
    """Also the second request of a connection that has had an answer."""
    with connected(port) as link, connected(port) as other:
        link.sendall(said)
        other.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert other.recv(1000).startswith(b"HTTP/1.1 200")
        other.sendall(said or b"G")

        assert drained(link) == 0
        drained(other)


def test_a_client_that_takes_no_answer_is_closed_and_others_are_answered(port, monkeypatch):
    """A frozen browser holds its memory for that long, and not for ever."""
    monkeypatch.setattr(page_server, "HEAD_MAX_S", 1000)
    with connected(port) as link, connected(port) as other:
        link.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        other.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert other.recv(1000).startswith(b"HTTP/1.1 200")
        wait_until(lambda: not page_server.BoundedProtocol.at_work)

        assert drained(link) < len(LARGE)


def drained(link: socket.socket) -> int:
    """Take all that comes until the connection is closed; return how much it was."""
    taken = 0
    try:
        while chunk := link.recv(1 << 20):
            taken += len(chunk)
    except ConnectionResetError:
        pass
    return taken


def test_a_client_that_is_slow_but_goes_on_gets_its_answer_whole(port, monkeypatch):
    """The bound for an answer is not that for a request."""
    monkeypatch.setattr(page_server, "HEAD_MAX_S", 0.1)
    monkeypatch.setattr(page_server, "ANSWER_MAX_S", 1000)
    with connected(port) as link:
        link.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not threading.Event().wait(1.0)

        assert drained(link) > len(LARGE)


def test_the_default_port_gives_way_to_a_free_one():
    """Two sidecars on one machine have a page each."""
    with bound_socket("127.0.0.1:0") as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with bound_socket(address, or_any_port=True) as other:
            ports = {each.getsockname()[1] for each in (taken, other)}

    assert len(ports) == 2


@pytest.mark.parametrize(
    ("address", "link"),
    [("127.0.0.1:0", "http://localhost:"), ("0.0.0.0:0", "http://localhost:")],
)
def test_the_link_is_one_that_a_browser_here_can_open(address, link):
    with bound_socket(address) as listening:
        assert link_of(listening, "t").startswith(link)
        assert link_of(listening, "t").endswith("/?token=t")
