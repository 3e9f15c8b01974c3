"""The gateway: what strangers send is counted, and disturbs nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from shared.emitter.connection import check_endpoint
from shared.wire import FRAME_MAX_BYTES, Hello, Message, Welcome, decode, encode
from telemetry.ingest.gateway import AddressInUse, Gateway, check_bind
from tests.telemetry.waiting import wait_until

HELLO = Hello(1, "r", "s", "rank0", 1)


@pytest.fixture
def gateway(place: Path) -> Iterator[Gateway]:
    with Gateway(f"ipc://{place}/t.sock") as gateway:
        yield gateway


@pytest.fixture
def dealer(gateway: Gateway) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(gateway.address)
    yield socket
    socket.close()
    context.term()


def received(gateway: Gateway, count: int = 1) -> list[tuple[bytes, Message]]:
    found: list[tuple[bytes, Message]] = []

    def has_enough() -> bool:
        found.extend(gateway.receive(0.05))
        return len(found) >= count

    wait_until(has_enough)
    return found


def test_a_message_arrives_with_its_peer_and_is_answered(gateway, dealer):
    """The plain way."""
    dealer.send_multipart(encode(HELLO))

    ((peer, message),) = received(gateway)
    gateway.send(peer, Welcome(1, 0, 5))

    assert message == HELLO
    assert dealer.poll(10_000) and decode(dealer.recv_multipart()) == Welcome(1, 0, 5)


GARBAGE = {
    "random bytes": [os.urandom(100), os.urandom(1000)],
    "no body": [b"\x01\x01"],
    "three frames": [*encode(HELLO), b"x"],
    "empty": [b"", b""],
    "newer version": [b"\x02\x01", encode(HELLO)[1]],
    "unknown type": [b"\x01\x63", encode(HELLO)[1]],
    "cut": [b"\x01\x01", encode(HELLO)[1][:-1]],
    "trailing": [b"\x01\x01", encode(HELLO)[1] + b"x"],
    "deep": [b"\x01\x01", b"\x91" * 100_000],
    "invalid utf-8": [b"\x01\x01", encode(HELLO)[1].replace(b"rank0", b"ran\xff0")],
    "long run id": encode(Hello(1, "r" * 10_000, "s", "rank0", 1)),
}


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_counted_and_the_next_message_arrives(gateway, dealer, frames):
    """Even from the same peer. Row 24."""
    dealer.send_multipart(frames)
    dealer.send_multipart(encode(HELLO))

    messages = [message for _, message in received(gateway)]

    assert messages == [HELLO]
    assert gateway.counts["malformed_messages_total"] == 1


def test_an_oversized_frame_costs_its_sender_the_connection_and_nobody_else(gateway, dealer):
    """ZeroMQ refuses it before it takes memory. Row 24."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as flooder:
        flooder.setsockopt(zmq.LINGER, 0)
        flooder.connect(gateway.address)
        flooder.send_multipart([b"\x01\x03", bytes(2 * FRAME_MAX_BYTES)])
        dealer.send_multipart(encode(HELLO))
        others = [message for _, message in received(gateway)]

        # Behind it on the same connection, or on the next one.
        def is_heard() -> bool:
            flooder.send_multipart(encode(HELLO))
            return any(gateway.receive(0.05))

        wait_until(is_heard)

    assert others == [HELLO]
    assert gateway.counts["malformed_messages_total"] == 0


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00", os.urandom(4096)], ids=["http", "zmtp1", "any"]
)
def test_who_does_not_speak_zmtp_disturbs_nobody(said):
    """A scanner, a browser, an ancient client. Row 24."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        Gateway(f"tcp://127.0.0.1:{port}") as gateway,
        socket.create_connection(("127.0.0.1", port)) as stranger,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as dealer,
    ):
        dealer.setsockopt(zmq.LINGER, 0)
        stranger.sendall(said)
        dealer.connect(gateway.address)
        dealer.send_multipart(encode(HELLO))

        messages = [message for _, message in received(gateway)]

    assert messages == [HELLO]


def test_an_answer_to_a_peer_that_is_gone_is_let_go(gateway):
    """Nothing blocks, nothing is raised."""
    gateway.send(b"\x00gone", Welcome(1, 0, 5))


def test_one_call_gives_a_bounded_number_of_messages(gateway, dealer):
    """A flood does not keep the loop from committing. Row 26."""
    for _ in range(600):
        dealer.send_multipart(encode(HELLO))

    first = len(list(gateway.receive(5)))
    rest = len(received(gateway, 600 - first))

    assert first <= 512 and first + rest == 600


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "[::]", "*", "example.com"])
def test_an_address_that_others_could_reach_needs_the_flag(host):
    """Events would cross a network in the clear."""
    address = f"tcp://{host}:5555"

    with pytest.raises(ValueError, match="--insecure-network"):
        check_bind(address, allow_insecure=False)

    check_bind(address, allow_insecure=True)


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:5555", "tcp://localhost:1", "tcp://[::1]:9", "ipc:///run/t"]
)
def test_an_address_of_this_machine_needs_no_flag(address):
    """Loopback in both families, and a path."""
    check_bind(address, allow_insecure=False)


@pytest.mark.parametrize("address", ["", "ipc://", "udp://x:1", "tcp://x", "ipc://" + "x" * 108])
def test_what_is_no_address_is_refused(address):
    """Before anything is opened."""
    with pytest.raises(ValueError, match="endpoint"):
        Gateway(address)


def test_a_second_bind_of_an_ipc_path_is_refused_and_names_the_first(gateway):
    """ZeroMQ itself would steal the path without a word. Row 14."""
    with pytest.raises(AddressInUse, match=f"pid {os.getpid()}$"):
        Gateway(gateway.address)


def test_a_second_bind_of_a_port_is_refused():
    """Here the kernel says so. Row 14."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"tcp://127.0.0.1:{holder.getsockname()[1]}"

        with pytest.raises(AddressInUse, match="in use"):
            Gateway(address)


def test_an_ipc_path_can_be_bound_again_after_a_close(gateway):
    """And over the socket file that a killed sidecar leaves."""
    gateway.close()
    gateway.close()

    Gateway(gateway.address).close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "tcp://[::1]:0", "tcp://localhost:0"])
def test_a_port_of_the_kernels_choice_is_told_and_can_be_reached(address):
    """In version 6 of the protocol as well."""
    if "::1" in address and not has_ipv6():
        pytest.skip("no IPv6 here")
    with (
        Gateway(address) as gateway,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as dealer,
    ):
        dealer.setsockopt(zmq.IPV6, 1)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(check_endpoint(gateway.address))
        dealer.send_multipart(encode(HELLO))

        ((_, message),) = received(gateway)

    assert message == HELLO and not gateway.address.endswith(":0")


@pytest.mark.parametrize("address", ["tcp://::1:5555", "tcp://fe80::1:5555"])
def test_an_ipv6_address_without_brackets_is_told_how_to_be_written(address):
    """Where its port begins nobody can tell."""
    with pytest.raises(ValueError, match="in brackets"):
        check_bind(address, allow_insecure=False)
