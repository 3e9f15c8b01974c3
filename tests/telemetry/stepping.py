"""A sink process that dies at one row as `mode` in its run's directory says. Run as a script.

It is the real command on the lines sink, and appends a line to `starts` each time.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from telemetry.cli import main
from telemetry.journal.rows import Row
from telemetry.sinks.base import Position, SinkContext
from telemetry.sinks.registry import SINKS
from tests.telemetry.sinks.lines_sink import LinesSink, Trouble

BAD_ROW = 30


def fail() -> None:
    raise ValueError("a value that no library takes " + "x" * 300_000)


def run_out_of_memory() -> None:
    raise MemoryError


def lack_room() -> None:
    raise OSError(28, "No space left on device")


DEATHS: dict[str, Callable[[], object]] = {
    "raise": fail,
    "abort": os.abort,
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "bus": lambda: os.kill(os.getpid(), signal.SIGBUS),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: (signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.raise_signal(15)),
    "memory": run_out_of_memory,
    "room": lack_room,
    "hang": lambda: time.sleep(600),
}


class DyingSink(LinesSink):
    """Dies at BAD_ROW, or where it opens or finishes, as its mode says."""

    def __init__(self, context: SinkContext) -> None:
        super().__init__(context, Trouble())
        self._mode = context.out_dir / "mode"

    def open(self, position: Position) -> int:
        self._die("open")
        return super().open(position)

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.row == BAD_ROW:
                self._die("row")
            super().write([row])

    def finish(self, status: str | None, exit_code: int | None) -> Position:
        self._die("finish")
        return super().finish(status, exit_code)

    def _die(self, place: str) -> None:
        where, _, how = self._mode.read_text().partition(" ")
        if where == place:
            DEATHS[how]()


if __name__ == "__main__":
    run_dir = Path(sys.argv[2])
    with (run_dir / "starts").open("a") as file:
        file.write("lines\n")
    SINKS["lines"] = "tests.telemetry.stepping:DyingSink"
    sys.exit(main(["sink", *sys.argv[1:]]))
