"""Peers that take all they can get: the sidecar lives, stays small, and serves the others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import zmq

from shared.emitter import Emitter
from shared.wire import SCHEMA, Hello, Welcome, decode, encode
from tests.faults.test_processes import after, slow
from tests.telemetry.sidecar_process import QUIET, SidecarProcess, clean_env, http_get
from tests.telemetry.test_service import free_address
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import finished, metric, started

MEGABYTE = 2**20


@contextmanager
def peer(endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """A raw peer of the wire."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(endpoint)
        yield dealer


def floods(act: Callable[[zmq.Socket[bytes], int], None], endpoint: str) -> Iterator[None]:
    """A peer at work on a thread of its own, until the generator ends."""
    stop = threading.Event()

    def run() -> None:
        with peer(endpoint) as dealer:
            number = 0
            while not stop.is_set():
                try:
                    act(dealer, number)
                    number += 1
                except zmq.Again:
                    stop.wait(0.001)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    stop.set()
    thread.join()


flooding = contextmanager(floods)


def slowest_ack_s(producer: Emitter, seconds: float) -> float:
    """The longest that an event of an honest producer waited for its acknowledgement."""
    slowest, deadline, step = 0.0, after(seconds), 0
    while not deadline():
        before, began_s = producer.stats().acknowledged, time.monotonic()
        producer.emit(metric(step))
        step += 1
        wait_until(lambda n=before: producer.stats().acknowledged > n, 30)
        slowest = max(slowest, time.monotonic() - began_s)
    return slowest


def send_oversized(dealer: zmq.Socket[bytes], number: int) -> None:
    """A frame of 1 MB, in order, whatever credit says; its answer is not read."""
    if number == 0:
        dealer.send_multipart(encode(Hello(1, f"big-{id(dealer)}", "s", "rank0", SCHEMA)))
        dealer.poll(20_000)
    frame = b"\x93\x01" + b"\xce" + number.to_bytes(4, "big")
    frame += b"\x91\xc6" + (1_000_000).to_bytes(4, "big") + bytes(1_000_000)
    dealer.send_multipart([b"\x01\x03", frame], zmq.DONTWAIT)


def send_random(dealer: zmq.Socket[bytes], number: int) -> None:
    dealer.send_multipart([b"\x01\x03", os.urandom(100_000)], zmq.DONTWAIT)


def send_new_run(dealer: zmq.Socket[bytes], number: int) -> None:
    hello = Hello(number, f"flood-{id(dealer)}-{number}", "s", "rank0", SCHEMA)
    dealer.send_multipart(encode(hello), zmq.DONTWAIT)
    while number % 50 == 0 and dealer.poll(0):
        dealer.recv_multipart()


@pytest.mark.parametrize("act", [send_oversized, send_random, send_new_run])
@pytest.mark.parametrize("seconds", [3, slow(30)])
def test_peers_that_flood_take_bounded_memory_and_delay_nobody(place, act, seconds):
    """Frames of 1 MB that ignore their credit, random bytes, ever new run ids; none of them
    reads what is answered. Rows 26 and 39."""
    address = free_address()
    with (
        SidecarProcess(place / "data", f"--http={address}") as sidecar,
        Emitter(sidecar.endpoint, run_id="r", source="rank0") as producer,
    ):
        producer.emit(started())
        wait_until(lambda: producer.stats().acknowledged == 1)
        before = sidecar.service.memory_info().rss
        with flooding(act, sidecar.endpoint), flooding(act, sidecar.endpoint):
            slowest_s = slowest_ack_s(producer, seconds)
            live = http_get(address, "/livez")[0]
            grown = sidecar.service.memory_info().rss - before
        runs = len(list((place / "data" / "runs").iterdir()))
        is_all = producer.close(20)
        code = sidecar.terminate()

    assert live == 200 and is_all and code == 0
    assert grown < 90 * MEGABYTE, f"{grown / MEGABYTE:.0f} MB"
    assert slowest_s < 2.0, "an honest peer's acknowledgement waited"
    assert runs <= 2 * (200 + 4 * seconds) + 10


def test_a_peer_that_fills_its_queue_and_leaves_disturbs_nobody(place):
    """Thousands of HELLOs that nobody waits for an answer to. Row 39."""
    with SidecarProcess(place / "data") as sidecar:
        service = sidecar.service
        for _ in range(5):
            with peer(sidecar.endpoint) as dealer:
                for number in range(1000):
                    send_new_run(dealer, number)
        with Emitter(sidecar.endpoint, run_id="r", source="rank0") as producer:
            producer.emit(started())
            is_all = producer.close(30)

        assert is_all and sidecar.service.pid == service.pid and "was ended by" not in sidecar.log


def limited(place: Path, limit: int, *flags: str) -> subprocess.Popen[bytes]:
    """`serve` under a limit of open files."""
    serve = [sys.executable, "-m", "telemetry", "serve", "--data-dir", str(place / "data")]
    command = ["bash", "-c", f'ulimit -n {limit}; exec "$0" "$@"', *serve, *QUIET, *flags]
    with (place / "log").open("ab") as log:
        return subprocess.Popen(command, env=clean_env(), stdout=log, stderr=log)


@pytest.mark.parametrize(
    ("how", "limit", "count"),
    [("ipc", 512, 700), ("ipc", 1024, 1012), ("tcp", 1024, 1012), ("http", 512, 245)],
)
def test_idle_connections_do_not_use_up_its_descriptors(place, how, limit, count):
    """libzmq aborts where it finds none: they are refused long before. Row 38."""
    address, http = f"127.0.0.1:{free_address().rpartition(':')[2]}", free_address()
    bind = f"tcp://{address}" if how == "tcp" else f"ipc://{place}/data/telemetry.sock"
    process = limited(place, limit, f"--http={http}", f"--bind={bind}")
    clients: list[socket.socket] = []
    try:
        wait_until(lambda: "listening on" in (place / "log").read_text())
        (service,) = psutil.Process(process.pid).children()
        most = 0
        while len(clients) < count:
            clients.append(connected(how, bind, http))
            most = max(most, service.num_fds()) if len(clients) % 8 == 0 else most
        wait_until(lambda: service.num_fds() < limit * 5 / 8)
        with Emitter(bind, run_id="r", source="rank0") as producer:
            producer.emit(started())
            producer.emit(finished())
            is_all = producer.close(40)
        is_alive = service.is_running()
    finally:
        for client in clients:
            client.close()
        process.terminate()
        code = process.wait(60)

    assert is_all and is_alive and code == 0
    assert most < limit * 7 / 8, "a burst came near the limit before it was refused"
    assert "was ended by" not in (place / "log").read_text()


def connected(how: str, bind: str, http: str) -> socket.socket:
    """An idle connection; one of HTTP is in the middle of its request."""
    if how == "ipc":
        client = socket.socket(socket.AF_UNIX)
        client.connect(bind.removeprefix("ipc://"))
        return client
    host, _, port = (http if how == "http" else bind.removeprefix("tcp://")).rpartition(":")
    client = socket.create_connection((host, int(port)), 5)
    if how == "http":
        client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
    return client


@pytest.mark.parametrize("count", [60, slow(500)])
def test_runs_that_are_launched_at_once_all_get_in(place, count):
    """Each by a peer of its own; whoever has to wait asks again. Row 38."""
    with SidecarProcess(place / "data") as sidecar, zmq.Context() as context:
        context.set(zmq.MAX_SOCKETS, 2 * count)
        dealers = [context.socket(zmq.DEALER) for _ in range(count)]
        waiting = set(range(count))
        for dealer in dealers:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(sidecar.endpoint)
        asked_s = 0.0
        deadline = after(100)
        while waiting and not deadline():
            if time.monotonic() - asked_s > 0.5:
                asked_s = time.monotonic()
                for n in waiting:
                    dealers[n].send_multipart(encode(Hello(1, f"run-{n}", "s", "rank0", SCHEMA)))
            for n in list(waiting):
                if dealers[n].poll(1):
                    is_in = isinstance(decode(dealers[n].recv_multipart()), Welcome)
                    waiting -= {n} if is_in else set()
        for dealer in dealers:
            dealer.close()

    assert not waiting
    assert len(list((place / "data" / "runs").iterdir())) == count
