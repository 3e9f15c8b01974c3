"""Sink interface: a reader of one run's journal with a durable position.

A sink writes each row exactly once because of three promises: rows come in order;
`open` undoes or recognizes what a crash left behind the last position; and a position
covers only rows that are safely in the sink.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from telemetry.journal.rows import Row
from telemetry.run_dir import RunFile


class SinkUnavailable(Exception):
    """Error: the sink is not available now; try again later. The position has not moved."""


class SinkBehind(SinkUnavailable):
    """Error: the sink is not available now, and has logged the reason itself already."""


class SinkRejected(Exception):
    """Error: the sink will never accept this, so do not try again. The message says why."""


class Position(NamedTuple):
    """Progress of a sink in a journal.

    row: the row after the last one that the sink holds. state: JSON values that the
    sink needs to continue from there; {} at the start.
    """

    row: int
    state: dict[str, Any]


START = Position(0, {})


def left_out_of(position: Position) -> int:
    """Return the number of values that a sink left out because it has no place for them."""
    count = position.state.get("left_out", 0)
    return count if type(count) is int else 0


def sleep(seconds: float) -> bool:
    """Wait, for a sink without a supervisor; returns False, as nothing asks it to stop."""
    time.sleep(seconds)
    return False


def keep_going(row: int, reason: str) -> None:
    """Skip a row without recording it, for a sink that has no account."""


class SinkContext(NamedTuple):
    """The run and the services that a sink is created with.

    `out_dir` is the directory for its files: RUN_DIR live, another directory in a
    replay. `run` is the content of the run's run.json.

    `wait` is for a sink that needs long for something: it reports that the sink is
    alive, waits so many seconds (0: not at all), and returns True as soon as the sink
    has to stop. A sink that is silent for sink_timeout_s is killed.

    `journal` is the uuid of the journal that the rows come from, empty if unknown.
    `skipped` holds the rows that the sink is not given. `skip` adds a row that the
    library behind the sink refuses, with the reason; the skip is on disk when the call
    returns, and the sink continues with the next row.
    """

    run_id: str
    out_dir: Path
    run: RunFile
    options: dict[str, str]
    wait: Callable[[float], bool] = sleep
    journal: str = ""
    skipped: Container[int] = frozenset()
    skip: Callable[[int, str], None] = keep_going


@runtime_checkable
class Flushing(Protocol):
    """A sink whose readers may see rows that are not durable yet: offered beside `Sink`."""

    def flush(self) -> None:
        """Let readers see the rows written so far. Called at the end of what can be read.

        Raises:
            SinkUnavailable: as for `Sink.write`.
        """
        ...


class Sink(Protocol):
    """A writer of one run to one destination. Runs on the main thread of its own process."""

    def open(self, position: Position) -> int:
        """Recover from a crash, and return the first row to write.

        position: the last result of `commit` or `finish` (START at first). The row
        returned may lie before position.row if the sink needs earlier rows to rebuild
        its state; `write` then recognizes them and does not write them twice.

        Raises:
            SinkUnavailable: try again later.
            SinkRejected: the sink will never accept this run.
        """
        ...

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows, which come in order and without repetition since `open`.

        Raises:
            SinkUnavailable, SinkRejected: as for open.
        """
        ...

    def commit(self) -> Position:
        """Make rows durable, and return the position up to which they safely are.

        Called about once a second after writes. The position may be older than the last
        row written, if the sink can't be sure of the rest yet.
        """
        ...

    def finish(self, status: str | None, exit_code: int | None) -> Position:
        """Finish the run after its last row, and return the final position.

        status and exit_code are those of its RunFinished. Until this returns, the sink
        does not count as done with the run.
        """
        ...

    def close(self) -> None:
        """Release everything without finishing the run. May be called twice."""
        ...
