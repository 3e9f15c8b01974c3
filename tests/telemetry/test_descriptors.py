"""File descriptors, connections and runs have bounds, far from where a library aborts."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys

import pytest
import zmq

from shared.wire import Hello, Welcome, decode, encode
from telemetry.descriptors import PER_RUN, SPARE, open_descriptors, shares_in_use, shares_of
from telemetry.ingest.connections import REFUSED
from telemetry.ingest.gateway import Gateway
from telemetry.ingest.limits import ALL_BURST, PEER_BURST, Allowance, RunLimits, Wait
from tests.fakes import ManualClock
from tests.telemetry.sidecar_process import clean_env
from tests.telemetry.waiting import wait_until

SECOND = 10**9


@pytest.mark.parametrize("limit", [512, 1024, 4096, 65_536])
def test_all_shares_together_stay_below_the_limit(limit):
    """With something to spare for sinks, spools and HTTP. Row 38."""
    shares = shares_of(limit)

    assert shares.connections + PER_RUN * shares.runs + 100 < limit
    assert shares.runs >= 40 and shares.connections >= 180


def test_the_share_in_use_is_that_of_the_soft_limit():
    """Whoever serves in a process of their own has raised it before."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)

    assert shares_in_use().limit == min(soft, 65_536)
    assert 3 < open_descriptors() < soft and shares_of(open_descriptors() + SPARE).has_spare() is (
        False
    )


PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from telemetry.descriptors import prepare_descriptors
print(prepare_descriptors().limit, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_soft_limit_is_raised_to_the_hard_one():
    """Row 38."""
    command = [sys.executable, "-c", PROGRAM, "256", "2048"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean_env())

    assert done.stdout.split() == ["2048", "2048", "2048"]


def test_below_512_serve_refuses_to_start_with_the_reason(place):
    """And names the way out. Row 38."""
    serve = f"{sys.executable} -m telemetry serve --data-dir {place}/data --http off --sinks="
    done = subprocess.run(
        ["bash", "-c", f"ulimit -n 256; exec {serve}"],
        capture_output=True, text=True, env=clean_env(), timeout=60,
    )  # fmt: skip

    assert done.returncode == 2
    assert "limit of open files is 256" in done.stderr and "ulimit -n" in done.stderr


# --- how many runs, how fast


def test_an_allowance_grows_with_time_up_to_its_burst():
    """Not beyond it."""
    allowance = Allowance(2, 1.0, 0)
    allowance.spend()
    allowance.spend()

    assert [allowance.left(at) for at in (0, SECOND, 100 * SECOND)] == [0, 1, 2]


def test_new_runs_are_bounded_for_a_peer_and_altogether():
    """One peer leaves enough for others; all together are bounded too. Row 39."""
    limits = RunLimits(ManualClock(), 10_000)

    def opened(peer: bytes, count: int) -> int:
        done = 0
        for _ in range(count):
            try:
                limits.check(peer, is_new=True, open_runs=0)
            except Wait:
                break
            done += 1
        return done

    first = opened(b"flood", 5000)
    others = sum(opened(b"p%d" % n, 1) for n in range(5000))

    assert first == PEER_BURST and first + others == ALL_BURST


def test_a_run_that_exists_is_no_new_one():
    """A restart of the sidecar opens hundreds."""
    limits = RunLimits(ManualClock(), 10_000)
    for _ in range(3 * ALL_BURST):
        limits.check(b"p", is_new=False, open_runs=0)


def test_what_is_remembered_of_peers_is_bounded():
    """Each HELLO may come from another one."""
    clock = ManualClock()
    limits = RunLimits(clock, 10_000, peers_max=10)
    for n in range(100):
        clock.mono += SECOND
        limits.check(b"p%d" % n, is_new=True, open_runs=0)

    assert len(limits._of_peer) <= 11


# --- connections


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_connections_above_the_bound_are_closed_and_those_below_it_are_served(place, transport):
    """The newest go; a peer that was there goes on, and when some leave others get in. Row 38."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"ipc://{place}/t.sock" if transport == "ipc" else f"tcp://127.0.0.1:{port}"
    with (
        Gateway(address, connections_max=8) as gateway,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as early,
        context.socket(zmq.DEALER) as late,
    ):
        for dealer in (early, late):
            dealer.setsockopt(zmq.LINGER, 0)
        early.connect(address)
        hear(gateway, early)
        strangers = [connected(address) for _ in range(40)]
        wait_until(lambda: gateway.all_counts.get(REFUSED, 0) >= 33)
        wait_until(lambda: len(gateway._connections.open) <= 8)
        hear(gateway, early)
        for stranger in strangers:
            stranger.close()
        late.connect(address)
        hear(gateway, late)

    assert gateway.all_counts[REFUSED] >= 33


def connected(address: str) -> socket.socket:
    transport, _, rest = address.partition("://")
    if transport == "tcp":
        host, port = rest.split(":")
        return socket.create_connection((host, int(port)), 5)
    client = socket.socket(socket.AF_UNIX)
    client.connect(rest)
    return client


def hear(gateway: Gateway, dealer: zmq.Socket[bytes]) -> None:
    """A message of this peer arrives, and so does its answer."""
    dealer.send_multipart(encode(Hello(1, "r", "s", "rank0", 1)))

    def is_answered() -> bool:
        for peer, _ in gateway.receive(0.05):
            gateway.send(peer, Welcome(1, 0, 5))
        return bool(dealer.poll(10))

    wait_until(is_answered)
    assert decode(dealer.recv_multipart()) == Welcome(1, 0, 5)
