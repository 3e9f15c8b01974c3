"""Stage: one run that should be online, and its sink processes, one after the other.

In: the rows of the run's journal, as many as a process is given.
Out: what the server has of them, compared with what it must have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from telemetry.journal.rows import Row
from telemetry.sinks.base import START, Position, SinkContext
from telemetry.sinks.wandb import WandbSink, offline
from telemetry.sinks.wandb.timeouts import TIMEOUTS, Timeouts
from telemetry.summary import unsynced_wandb_runs
from tests.fake_wandb import FakeRun, FakeWandb

from .journal import expected_history, server_history, written_history
from .surroundings import RUN_ID, PausingClock, teardown_wandb

DUE_S = 700
"""After so long a server that was away is asked again."""


@dataclass
class Stage:
    """The run's context, its clock, its server, and the timeouts of its sinks."""

    context: SinkContext
    clock: PausingClock
    server: FakeWandb
    timeouts: Timeouts = TIMEOUTS

    def sink(self, **changed: Any) -> WandbSink:
        """A sink, of the run's context or of one that is changed so."""
        context = self.context._replace(**changed)
        return WandbSink(context, self.clock, self.clock.pause, timeouts=self.timeouts)

    def begin(self, rows: list[Row], position: Position = START) -> WandbSink:
        """The next sink process: opened, and given the rows that it wants."""
        teardown_wandb()
        sink = self.sink()
        first = sink.open(saved(position))
        sink.write([row for row in rows if row.row >= first])
        return sink

    def begin_and_arrive(self, rows: list[Row], count: int | None = None) -> WandbSink:
        """The same from the first row, and so many history rows (all) are on the server."""
        sink = self.begin(rows)
        self.wait_for_lines(len(steps_of(rows)) if count is None else count)
        return sink

    def write_some(self, rows: list[Row], position: Position = START) -> tuple[WandbSink, Position]:
        """A sink process that is stopped before the run ends, and the position it leaves."""
        sink = self.begin(rows, position)
        position = sink.commit()
        sink.close()
        return sink, position

    def write_all(self, rows: list[Row], position: Position = START) -> Position:
        """A sink process that comes to the end of the run."""
        sink = self.begin(rows, position)
        final = sink.finish("finished", 0)
        sink.close()
        return final

    def check_caught_up(self, rows: list[Row], position: Position = START) -> Position:
        """Once the server is well and asked again, a sink process brings it all of the run."""
        self.server.calm()
        self.clock.pause(DUE_S)
        final = self.write_all(rows, position)
        self.check_whole(rows)
        return final

    def check_whole(self, rows: list[Row]) -> None:
        assert self.run.conflicts == 0
        assert server_history(self.run) == expected_history(rows)

    @property
    def run(self) -> FakeRun:
        """The run as the server has it."""
        return self.server.runs[RUN_ID]

    def wait_for_lines(self, count: int) -> None:
        runs = self.server.runs
        self.server.wait_for(lambda: RUN_ID in runs and len(runs[RUN_ID].lines) >= count)

    def fragments(self, place: str = ".") -> list[Path]:
        return offline.fragment_paths(self.context.out_dir / place / "wandb", RUN_ID)

    def offline_steps(self, place: str = ".") -> list[int]:
        """The rows in the fragments of a place."""
        return [row["_step"] for row in written_history(self.context.out_dir / place)]

    def to_sync(self) -> list[Path]:
        """Return the fragments that the user is told to upload."""
        return unsynced_wandb_runs(self.context.out_dir)

    def superseded(self) -> int:
        return offline.superseded_count(self.context.out_dir / "wandb", RUN_ID)


def saved(position: Position) -> Position:
    """A position as it comes back from its file."""
    return Position(position.row, json.loads(json.dumps(position.state)))


def steps_of(rows: list[Row]) -> list[int]:
    return [row["_step"] for row in expected_history(rows)]


def commit_until_it_raises(
    sink: WandbSink, kind: type[Exception], between: Callable[[], object] = bool
) -> None:
    """Commit again and again; the test's own time limit bounds it."""
    try:
        while True:
            between()
            sink.commit()
    except kind:
        sink.close()


def upload(fragments: list[Path]) -> None:
    """Run `wandb sync` on each directory, as a user is told to."""
    assert fragments != []
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for path in fragments:
        command = ["wandb", "sync", str(path)]
        subprocess.run(command, env=os.environ | {"PATH": tools}, check=True, timeout=60)


def kill_core() -> None:
    for child in psutil.Process().children(recursive=True):
        if child.name() == "wandb-core":
            child.kill()
            child.wait()
