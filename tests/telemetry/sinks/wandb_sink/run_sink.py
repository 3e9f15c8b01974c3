"""A sink process for the kill tests: `python -m ….run_sink OUT_DIR ROWS [AFTER POINT]`.

In: a directory, how many rows its journal has, and where to kill itself: so
many rows after the first that is in no file, right after the `write` of
a batch and with wandb-core, or after its `commit` and alone.
Out: the sink's files there, `cursor.json`, and `written.json` before a kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil

from telemetry.sinks.base import Position
from telemetry.sinks.wandb import WandbSink
from telemetry.sinks.wandb.offline import last_row, read_fragments

from .journal import mixed_journal
from .surroundings import RUN_ID, make_context

BATCH = 50


def main(out_dir: Path, count: int, kill_after: int, kill_point: str) -> None:
    cursor = out_dir / "cursor.json"
    rows = mixed_journal(count)
    sink = WandbSink(make_context(out_dir))
    position = Position(*json.loads(cursor.read_text())) if cursor.exists() else Position(0, {})
    kill_from = last_row(read_fragments(out_dir / "wandb", RUN_ID)) + kill_after
    first = sink.open(position)
    for start in range(first, count, BATCH):
        is_last = start + BATCH > kill_from
        sink.write(rows[start : start + BATCH])
        if is_last and kill_point == "write":
            kill_core()
            kill_self(out_dir, start + BATCH)
        position = sink.commit()
        if is_last and kill_point == "commit":
            kill_self(out_dir, start + BATCH)
        save(cursor, position)
    save(cursor, sink.finish("finished", 0))
    sink.close()


def kill_core() -> None:
    """As a supervisor does, which leaves it no time to write what it holds."""
    for child in psutil.Process().children(recursive=True):
        child.kill()


def kill_self(out_dir: Path, written: int) -> None:
    save(out_dir / "written.json", written)
    os.kill(os.getpid(), signal.SIGKILL)


def save(path: Path, value: Position | int) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(value))
    beside.replace(path)


if __name__ == "__main__":
    after, point = (int(sys.argv[3]), sys.argv[4]) if len(sys.argv) > 3 else (1 << 62, "")
    main(Path(sys.argv[1]), int(sys.argv[2]), after, point)
