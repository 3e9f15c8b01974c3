"""An online sink process for the kill tests: `python -m ….run_online OUT_DIR [ROWS]`.

In: a directory, how many rows its journal has (without: it has no end, and a run's pace),
and a server in the environment.
Out: rows on the server; `cursor.json`, and `written.json` with the number of rows
handed to wandb so far. Exit code 0 done, 3 try again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import islice
from pathlib import Path

from telemetry.sinks.base import START, Position, SinkUnavailable
from telemetry.sinks.wandb import WandbSink
from telemetry.sinks.wandb.limits import Limits

from .journal import endless_journal, mixed_journal
from .run_sink import save
from .surroundings import make_context

BATCH = 5
PACE_S = 0.01
"""After each batch of a run that goes on: slow enough for a server on busy cores, and fast
enough that there is always something on its way."""

STILL_STEP_S = 0.1
"""What five seconds of standstill take here: on loopback nothing is on its way for longer."""


class FastClock:
    """Real time, and what was waited: a wait of 5 s takes 0.1 s."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def wall_ns(self) -> int:
        return time.time_ns() + self.ahead_ns

    def monotonic_ns(self) -> int:
        return time.monotonic_ns() + self.ahead_ns

    def wait(self, seconds: float) -> bool:
        if seconds:
            self.ahead_ns += int(seconds * 1e9)
            time.sleep(STILL_STEP_S)
        return False


def main(out_dir: Path, count: int | None) -> int:
    cursor = out_dir / "cursor.json"
    clock = FastClock()
    context = make_context(out_dir, "online")._replace(wait=clock.wait)
    rows = iter(mixed_journal(count)) if count else endless_journal()
    sink = WandbSink(context, clock, limits=Limits(ask_every_s=0.5))
    try:
        first = sink.open(_position(cursor))
        rows = islice(rows, first, None)
        while batch := list(islice(rows, BATCH)):
            sink.write(batch)
            save(out_dir / "written.json", batch[-1].row + 1)
            save(cursor, sink.commit())
            time.sleep(0.0 if count else PACE_S)
        save(cursor, sink.finish("finished", 0))
    except SinkUnavailable:
        return 3
    finally:
        sink.close()
    return 0


def _position(cursor: Path) -> Position:
    return Position(*json.loads(cursor.read_text())) if cursor.exists() else START


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
    sys.stderr.flush()
    os._exit(code)
