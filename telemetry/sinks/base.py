"""What a sink is: a reader of one run's journal with a durable position.

A sink makes exactly-once out of three promises: rows come in order, `open`
undoes or recognizes what a crash left behind the last position, and a
position names only what is safely in the sink.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from telemetry.rows import Row


class SinkUnavailable(Exception):
    """The sink can't be had now; try again later. The position has not moved."""


class SinkBehind(SinkUnavailable):
    """The sink can't be had now, which it has said itself: it needs saying no second time."""


class SinkRejected(Exception):
    """The sink will never take this; trying again is pointless. The message says why."""


class Position(NamedTuple):
    """How far a sink has got: the row after the last one it holds, and what it
    needs to go on from there (JSON values; {} at the start)."""

    row: int
    state: dict[str, Any]


START = Position(0, {})


def left_out_of(position: Position) -> int:
    """Return how many values a sink left out because it has no place for them."""
    count = position.state.get("left_out", 0)
    return count if type(count) is int else 0


def sleep(seconds: float) -> bool:
    """Wait where nobody watches, and nobody asks to stop."""
    time.sleep(seconds)
    return False


def keep_going(row: int, reason: str) -> None:
    """Step over a row where nobody keeps account of it."""


class SinkContext(NamedTuple):
    """What every sink is told.

    `out_dir` is where its files go: RUN_DIR live, another directory in a
    replay. `run` is the run's run.json: run_id, project, name, tags, notes,
    group, wandb_mode, config, host, gpu_uuids, started_wall_ns.

    `wait` is for a sink that has to be long about something: it waits so many
    seconds (0: not at all), says that the sink lives, and returns True as soon as
    the sink is to stop. A sink that is silent for sink_timeout_s is killed.

    `journal` is the uuid of the journal that the rows come from, empty where that is not
    known. `skipped` holds the rows that are withheld. `skip` withholds one more, for a
    reason: a row that the library behind the sink does not take; it is on disk when it
    returns, and the sink goes on with the next row.
    """

    run_id: str
    out_dir: Path
    run: dict[str, Any]
    options: dict[str, str]
    wait: Callable[[float], bool] = sleep
    journal: str = ""
    skipped: Container[int] = frozenset()
    skip: Callable[[int, str], None] = keep_going


class Sink(Protocol):
    """One run in one place. Runs on the main thread of a process of its own."""

    def open(self, position: Position) -> int:
        """Recover from whatever a crash left, and return the first row to write.

        position is what `commit` or `finish` last returned (START at first).
        The row returned may lie before position.row, where the sink has to see
        rows again to rebuild what it knows; `write` then recognizes them.

        Raises:
            SinkUnavailable: try again later.
            SinkRejected: this run will never be taken.
        """
        ...

    def write(self, rows: Sequence[Row]) -> None:
        """Take rows, in order and without repetition since `open`.

        Raises:
            SinkUnavailable, SinkRejected: as for open.
        """
        ...

    def commit(self) -> Position:
        """Make durable what can be, and say how far the sink safely is.

        Called about once a second after writes. May return an older position
        than was written, where the sink can't yet vouch for the rest.
        """
        ...

    def finish(self, status: str | None, exit_code: int | None) -> Position:
        """All rows were written and the run has ended (status of its RunFinished).

        Returns the final position; until finish returns, the run does not
        count as done here.
        """
        ...

    def close(self) -> None:
        """Let go without finishing: the run goes on, or will later. May be called twice."""
        ...
