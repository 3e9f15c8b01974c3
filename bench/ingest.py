"""Speed of a sidecar in taking in events, of this checkout beside an older one.

In: the path of another checkout; a number of rounds.
Out: for each, acknowledged events a second and the sidecar's CPU time for an event; ratios.
Never: compares figures of two runs. In a round each checkout serves the same producer, one
after the other, in turns as to who is first; a ratio is the median over the rounds of the ratio
within a round, beside it the quartiles.

    git worktree add ../before HEAD~5
    python -m bench.ingest ../before --rounds 10

An event is a row of twelve floats, and 256 of them are packed beforehand into a frame that is
sent again and again: the producer costs next to nothing, the sidecar is what is measured. Half
of the time it is the producer that waits for credit, or for a sync.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import zmq
from msgspec import Raw

from bench.ratios import summary
from shared.events import Event, MetricsLogged, RunFinished, RunStarted, encode_event, join_events
from shared.wire import SCHEMA, Ack, Data, Fin, FinAck, Hello, Message, Welcome, decode, encode
from tests.telemetry.sidecar_process import clean_env

HERE: Final = Path(__file__).parents[1]
FRAME_EVENTS: Final = 256
ANSWER_S: Final = 60.0
FLAGS: Final = ("--sinks=", "--sample-hz=0", "--no-host-run", "--http=off")
"""Flags that older checkouts have as well; what they lack is turned off by variables."""
VARIABLES: Final = {"TELEMETRY_PAGE": "off"}


class Measured(NamedTuple):
    events_per_s: float
    cpu_us_per_event: float


class Producer:
    """One stream on one socket, which keeps as much on its way as it has credit for."""

    def __init__(self, endpoint: str, run_id: str) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._next_seq = 0
        self.durable_seq = -1
        self.credit_bytes = 0
        self._send(Hello(1, run_id, "s1", "rank0", SCHEMA, 0))
        self._await(Welcome)

    def send(self, events: bytes, count: int) -> None:
        self._send(Data(1, self._next_seq, Raw(events)))
        self._next_seq += count

    def fill(self, events: bytes, count: int, total: int) -> None:
        """Send a frame again and again until `total` events are acknowledged."""
        frame_bytes, last = len(events), self._next_seq + total
        while self.durable_seq + 1 < last:
            on_the_way = (self._next_seq - self.durable_seq - 1) // count * frame_bytes
            if self._next_seq < last and on_the_way + frame_bytes <= self.credit_bytes:
                self.send(events, count)
            else:
                self._await(Ack)

    def finish(self, events: bytes) -> None:
        self.send(events, 1)
        self._send(Fin(1, self._next_seq))
        self._await(FinAck)
        self._socket.close()

    def _send(self, message: Message) -> None:
        self._socket.send_multipart(encode(message))

    def _await(self, kind: type[Message]) -> None:
        """Take answers until one of a kind has come."""
        while True:
            if not self._socket.poll(ANSWER_S * 1e3):
                raise TimeoutError(f"no {kind.__name__} for {ANSWER_S:.0f} s")
            answer = decode(self._socket.recv_multipart())
            if isinstance(answer, Welcome | Ack):
                self.credit_bytes = answer.credit_bytes
            if isinstance(answer, Ack):
                self.durable_seq = answer.durable_seq
            if isinstance(answer, kind):
                return


def measured(checkout: Path, events: int) -> Measured:
    """Return the speed of the sidecar of a checkout, in a data directory of its own."""
    values = {f"train/value_{i}": i / 2 for i in range(12)}
    frame = join_events(
        [_packed(MetricsLogged(kind="train", step=i, values=values)) for i in range(FRAME_EVENTS)]
    )
    with (
        tempfile.TemporaryDirectory(prefix="ingest-", dir="/tmp") as name,
        _serving(checkout, Path(name)) as (endpoint, guard),
    ):
        producer = Producer(endpoint, "r")
        producer.send(_packed_alone(RunStarted(project="p", name="n")), 1)
        # Both measure from a sidecar that has imported, opened and allocated what it will.
        producer.fill(frame, FRAME_EVENTS, FRAME_EVENTS * 20)
        cpu_s, began = _cpu_s(guard), time.perf_counter()
        producer.fill(frame, FRAME_EVENTS, events)
        took_s, took_cpu_s = time.perf_counter() - began, _cpu_s(guard) - cpu_s
        producer.finish(_packed_alone(RunFinished(status="finished", exit_code=0)))
    return Measured(events / took_s, took_cpu_s / events * 1e6)


@contextmanager
def _serving(checkout: Path, data_dir: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Yield the endpoint of a sidecar, and its process, the parent of the one that serves."""
    command = [sys.executable, "-P", "-m", "telemetry", "serve", "--data-dir", str(data_dir)]
    with (data_dir / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *FLAGS],
            env=clean_env(PYTHONPATH=str(checkout), **VARIABLES),
            stderr=log,
            cwd=data_dir,
        )
    try:
        yield f"ipc://{data_dir}/telemetry.sock", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _cpu_s(process: psutil.Process) -> float:
    """Return the CPU time of a process and of all below it."""
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def _packed(event: Event) -> bytes:
    return encode_event(event, time.time_ns(), time.monotonic_ns())


def _packed_alone(event: Event) -> bytes:
    return join_events([_packed(event)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--events", type=int, default=FRAME_EVENTS * 4_000)
    args = parser.parse_args()
    events = args.events // FRAME_EVENTS * FRAME_EVENTS
    before, now = [], []
    sides = [(args.before.resolve(), before), (HERE, now)]
    for number in range(args.rounds):
        for checkout, found in sides if number % 2 else sides[::-1]:
            found.append(measured(checkout, events))
        print(
            f"{number}: {before[-1].events_per_s:,.0f} {now[-1].events_per_s:,.0f} events/s,",
            f"{before[-1].cpu_us_per_event:.2f} {now[-1].cpu_us_per_event:.2f} us",
            flush=True,
        )
    for field, text, decimals in (
        ("events_per_s", "events/s", 0),
        ("cpu_us_per_event", "us CPU", 2),
    ):
        sides_values = ([getattr(m, field) for m in found] for _, found in sides)
        print(summary(*sides_values, text, decimals))


if __name__ == "__main__":
    main()
