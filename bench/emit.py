"""How long does emit() keep a training thread? This checkout beside an older one.

In: the path of another checkout; a number of rounds.
Out: for each, nanoseconds of the calling thread's own time for an event, and the ratio.
Never: compares figures of two runs. The two take turns, in processes of their own, so that
what else the machine does at the time falls on both; the ratio is the median over the
rounds of the ratio within a round, beside it the quartiles.

    git worktree add ../before HEAD~5
    python -m bench.emit ../before --rounds 15

An event is a row of twelve floats, as a training step makes. No sidecar is there: the sender
thread takes the events out of the queue beside it, and packs and keeps them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from bench.ratios import summary

HERE = Path(__file__).parents[1]
CHILD = """
import sys, time
from shared.emitter import Emitter
from shared.events import MetricsLogged

count = int(sys.argv[1])
values = {f"train/value_{i}": i / 2 for i in range(12)}
with Emitter("ipc:///nonexistent/s", run_id="r", close_timeout_s=0.0) as emitter:
    for _ in range(200):
        emitter.emit(MetricsLogged(kind="train", step=0, values=values))
    time.sleep(0.3)
    events = [MetricsLogged(kind="train", step=step, values=values) for step in range(count)]
    emit, best = emitter.emit, float("inf")
    for start in range(0, count, 500):
        began = time.thread_time_ns()
        for event in events[start : start + 500]:
            emit(event)
        best = min(best, (time.thread_time_ns() - began) / 500)
        time.sleep(0.03)
print(best)
"""


def nanoseconds(checkout: Path, count: int) -> float:
    """Return the time of one emit() in a checkout: the best of some bursts of 500."""
    environ = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", CHILD, str(count)],
        env=environ, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--events", type=int, default=10_000)
    args = parser.parse_args()
    pairs = [
        (nanoseconds(args.before.resolve(), args.events), nanoseconds(HERE, args.events))
        for _ in range(args.rounds)
    ]
    before, now = zip(*pairs, strict=True)
    print(summary(before, now, "emit, ns"))


if __name__ == "__main__":
    main()
