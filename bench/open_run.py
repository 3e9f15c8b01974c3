"""How long does it take to open a run of a million events? From its journal, and kept columns.

In: a number of events.
Out: a Markdown table: seconds, seconds of CPU, and memory of a process that does just that.
Never: compares figures of two runs; each step is a process of its own, on the same files.

    python -m bench.open_run --events 1000000
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.big_run import write_run

CHART_POINTS = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--act", choices=ACTS)
    parser.add_argument("--run", type=Path)
    args = parser.parse_args()
    if args.act is not None:
        _act(ACTS[args.act], args.run)
        return
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "big"
        events = write_run(run, args.events)
        journal_mb = sum(p.stat().st_size for p in (run / "journal").iterdir()) / 1e6
        print(f"{events:,} events, {journal_mb:.0f} MB of journal\n")
        print("| act | s | CPU s | peak MB |\n|---|---|---|---|")
        for name in ACTS:
            command = [sys.executable, "-m", "bench.open_run", "--act", name, "--run", str(run)]
            told = json.loads(subprocess.check_output(command))
            print(f"| {name} | {told['s']:.2f} | {told['cpu_s']:.2f} | {told['peak_mb']:.0f} |")


def _act(act: Callable[[Path], object], run: Path) -> None:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    act(run)
    told = {
        "s": time.perf_counter() - began_s,
        "cpu_s": time.process_time() - began_cpu_s,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(told))


def _open(run: Path) -> None:
    from telemetry.views.columns import read_columns

    read_columns(run)


def _open_and_keep(run: Path) -> None:
    from telemetry.views.columns import keep_columns

    keep_columns(run)


def _chart(run: Path) -> None:
    from telemetry.views.columns import read_columns
    from telemetry.views.downsampling import downsample

    downsample(read_columns(run).series("train/loss"), CHART_POINTS)


def _chart_all(run: Path) -> None:
    from telemetry.views.columns import read_columns
    from telemetry.views.downsampling import downsample

    columns = read_columns(run)
    for name in columns.names():
        downsample(columns.series(name), CHART_POINTS)


def _goodput(run: Path) -> None:
    from telemetry.views.goodput import goodput_of_run

    goodput_of_run(run)


ACTS: dict[str, Callable[[Path], object]] = {
    "open, from the journal": _open,
    "open and keep columns": _open_and_keep,
    "open, from kept columns": _open,
    "the same, and a chart of the loss": _chart,
    "the same, and charts of all names": _chart_all,
    "goodput, from kept columns": _goodput,
}
"""What is measured, in this order: the second makes what those behind it read."""


if __name__ == "__main__":
    main()
