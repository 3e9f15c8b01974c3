"""An online sink process for the kill tests: `python -m ….run_online OUT_DIR ROWS PACE_S`.

In: a directory, how many rows its journal has, the pause after each batch, and a
server in the environment.
Out: rows on the server; `cursor.json`, and `written.json` with the number of rows
handed to wandb so far. Exit code 0 done, 3 try again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from telemetry.sinks.base import START, Position, SinkUnavailable
from telemetry.sinks.wandb import WandbSink, client, online

from .conftest import make_context
from .journal import mixed_journal
from .run_sink import save

BATCH = 5
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


def main(out_dir: Path, count: int, pace_s: float) -> int:
    online.ASK_S = 0.5  # type: ignore[misc]
    client._SETTINGS["x_file_stream_transmit_interval"] = 1.0
    cursor = out_dir / "cursor.json"
    clock = FastClock()
    context = make_context(out_dir, "online")._replace(wait=clock.wait)
    rows = mixed_journal(count)
    sink = WandbSink(context, clock)
    try:
        first = sink.open(_position(cursor))
        for start in range(first, count, BATCH):
            sink.write(rows[start : start + BATCH])
            save(out_dir / "written.json", start + BATCH)
            save(cursor, sink.commit())
            # As fast as a run is, so that there is always something on its way.
            time.sleep(pace_s)
        save(cursor, sink.finish("finished", 0))
    except SinkUnavailable:
        return 3
    finally:
        sink.close()
    return 0


def _position(cursor: Path) -> Position:
    return Position(*json.loads(cursor.read_text())) if cursor.exists() else START


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    sys.stderr.flush()
    os._exit(code)
