"""A trainer of the chaos run: emits numbered values at a bounded rate until it is told to end.

In: `python -m tests.faults.trainer_process`, with its place in the run; orders on stdin, a
line each: `finish`, `exit`, `raise`, `os_exit`, `fork`.
Out: events; and a side file with what it emitted and when, for the oracle.
Never: waits for its telemetry, or trusts it.

The side file has one record an event, written before the event is emitted, so
that a kill between the two can only make an event look lost, never invented:

    number u64 | mono_ns u64 | acknowledged u64    little-endian

Each event says again who emitted it as its what-th: see `values_of`. Steps mostly
rise, repeat now and then with other values, and go back a little more rarely.

`fork` has a worker emit through the emitter that it inherited, and return: a
process of its own for the oracle, with a number and a side file of its own.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import select
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shared.emitter import Emitter
from shared.events import MetricsLogged, RunFinished, RunStarted

RECORD = struct.Struct("<QQQ")
HOST = "chaos"
PROCESS = "chaos/process"
NUMBER = "chaos/number"
VALUE = "chaos/value"


WORKERS_FROM = 10_000
"""A worker's process number is its parent's and so many more for each fork before it."""

WORKER_EVENTS = 25


class Emitted(NamedTuple):
    """One record of a side file. acknowledged: of the session's events, RunStarted included."""

    number: int
    mono_ns: int
    acknowledged: int


def values_of(process: int, number: int) -> dict[str, float]:
    """The values of an event; all of them are exact as a float of 32 bits."""
    mixed = (process * 7919 + number) * 2654435761 % (1 << 24)
    return {PROCESS: process, NUMBER: number, VALUE: mixed / 1024}


def step_of(first: int, number: int) -> int:
    """The step of an event. Every seventh repeats the one before, and every sixtieth is late."""
    return first + number - (1 if number % 7 == 6 else 4 if number % 60 == 59 else 0)


def worker_path(side: Path, process: int) -> Path:
    """The side file of a worker, beside its parent's."""
    return side.with_name(f"{side.name}.{process}")


def read_side_file(path: Path) -> list[Emitted]:
    """What a process has emitted, as far as it came. Empty where it never began."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = len(data) - len(data) % RECORD.size
    return [Emitted(*fields) for fields in RECORD.iter_unpack(data[:whole])]


def last_emitted(path: Path) -> Emitted | None:
    """The last record of a side file, without reading the rest."""
    try:
        size = path.stat().st_size // RECORD.size * RECORD.size
    except FileNotFoundError:
        return None
    if not size:
        return None
    with path.open("rb") as file:
        file.seek(size - RECORD.size)
        return Emitted(*RECORD.unpack(file.read(RECORD.size)))


def orders(period_s: float) -> Iterator[str]:
    """What stdin says, once a period: an order, or nothing. Its end is an order to exit."""
    due_s = time.monotonic()
    while True:
        due_s = max(due_s + period_s, time.monotonic() - 1.0)
        ready, _, _ = select.select([0], [], [], max(0.0, due_s - time.monotonic()))
        if not ready:
            yield ""
        else:
            yield os.read(0, 100).decode().strip() or "exit"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    for flag in ("endpoint", "spool", "run", "source", "side"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--process", type=int, required=True)
    parser.add_argument("--step", type=int, default=0)
    parser.add_argument("--rate-hz", type=float, default=50)
    options = parser.parse_args(argv)
    logging.disable()
    side = os.open(options.side, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    emitter = Emitter(
        options.endpoint,
        run_id=options.run,
        source=options.source,
        spool_dir=Path(options.spool),
        series_interval_s=1e6,
    )
    started = RunStarted(project="chaos", name=options.run, wandb_mode="offline", host=HOST)
    emitter.emit(started)
    workers = 0
    for number, order in enumerate(orders(1 / options.rate_hz)):
        if order == "os_exit":
            os._exit(3)
        if order == "raise":
            raise SystemExit(4)
        if order == "fork":
            workers += 1
            start_worker(emitter, Path(options.side), options.process + workers * WORKERS_FROM)
        elif order:
            if order == "finish":
                emitter.emit(RunFinished(status="finished", exit_code=0))
            emitter.close()
            return
        say(emitter, side, options.process, number, step_of(options.step, number))


def say(emitter: Emitter, side: int, process: int, number: int, step: int) -> None:
    """Emit one event, noted before."""
    os.write(side, RECORD.pack(number, time.monotonic_ns(), emitter.stats().acknowledged))
    emitter.emit(MetricsLogged(kind="train", step=step, values=values_of(process, number)))


def start_worker(emitter: Emitter, side: Path, process: int) -> None:
    """Fork one as a DataLoader does; nobody waits for it before this process ends."""
    context = multiprocessing.get_context("fork")
    context.Process(target=work, args=(emitter, worker_path(side, process), process)).start()


def work(emitter: Emitter, side: Path, process: int) -> None:
    """A worker: some events through what it inherited, and back."""
    fd = os.open(side, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    # All workers of a source share directories in TensorBoard: its steps are the time.
    first = time.monotonic_ns() // 10_000_000 % (1 << 23)
    for number in range(WORKER_EVENTS):
        say(emitter, fd, process, first + number, first + number)
        time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1:])
