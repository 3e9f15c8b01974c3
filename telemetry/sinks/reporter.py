"""Reporter: tells the supervisor, through a pipe, that a sink process is alive and at which row.

In: the state of the sink, at least as often as its supervisor wants to hear of it.
Out: lines of JSON, each a Report.
Never: fails the sink: without a supervisor nothing is told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sized

import msgspec


class Report(msgspec.Struct, frozen=True):
    """One line of a sink process to its supervisor."""

    state: str
    row: int
    detail: str
    skipped: int = 0
    """Rows that the sink skipped because it can't take them."""
    said: bool = False
    """True if the process has logged the detail itself."""
    left_out: int = 0
    """Values that the sink left out because it has no place for them."""


def report_in(line: bytes) -> Report:
    """Return the report in a line. With the standard decoder: a detail may name any path."""
    return msgspec.convert(json.loads(line), Report)


class Reporter:
    """The writing end of the pipe. Not thread-safe."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._skips: Sized = ()
        self.left_out = 0
        """Number of values that the sink has no place for, from its position."""
        self.is_said = False
        """True if the detail of the next report was logged already."""

    @property
    def is_heard(self) -> bool:
        """True if a supervisor reads the reports, and logs changes of state."""
        return self._fd is not None

    def count_skips(self, skips: Sized) -> None:
        """Include the number of skipped rows in the reports."""
        self._skips = skips

    def __call__(self, state: str, row: int, detail: str = "") -> None:
        if self._fd is None:
            return
        report = Report(state, row, detail, len(self._skips), self.is_said, self.left_out)
        values = msgspec.structs.asdict(report)
        if not report.left_out:
            del values["left_out"]
        try:
            os.write(self._fd, json.dumps(values).encode() + b"\n")
        except OSError:
            self._fd = None  # the supervisor has closed the pipe
