"""Watched: the training processes that the sidecar asks the sampler to look at.

In: lines of JSON on the sampler's standard input, each with the whole list:

    {"watch": [{"run_id": "r1", "source": "rank0", "pid": 12, "start_ns": 17000…}]}

Out: the newest list.
Never: fails for a line that it does not understand; it says so once and goes on.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from shared.text import clean

log = logging.getLogger(__name__)

LINE_MAX_BYTES: Final = 256 * 1024
START_TOLERANCE_NS: Final = 2_500_000_000
"""Difference at most of two times of one start: the time of boot is known to a second only."""


class Watched(msgspec.Struct, frozen=True):
    """One training process, as its RunStarted told it. start_ns: of the wall clock."""

    run_id: str
    source: str
    pid: int
    start_ns: int

    @property
    def prefix(self) -> str:
        """The beginning of the names of its values."""
        return f"process/{self.run_id}/{self.source}"


class Order(msgspec.Struct, frozen=True):
    """A line from the sidecar: all processes to watch from now on."""

    watch: list[Watched] = []


class WatchList:
    """The processes to watch now. One thread feeds it; any thread may read `newest`."""

    def __init__(self) -> None:
        self.newest: tuple[Watched, ...] = ()
        self._buffer = b""
        self._has_complained = False

    def feed(self, data: bytes) -> None:
        """Take in bytes from the sidecar, in pieces of any size."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > LINE_MAX_BYTES:
            self._complain("a line is too long")
            self._buffer = b""
        for line in filter(None, lines):
            try:
                self.newest = tuple(msgspec.json.decode(line, type=Order).watch)
            except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
                self._complain(clean(str(exc), 200))

    def _complain(self, text: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            log.warning("an order of the sidecar is not understood, and left out: %s", text)


def order_of(watched: list[Watched]) -> bytes:
    """Return the line that asks to watch these processes and no others."""
    return msgspec.json.encode(Order(watched)) + b"\n"
