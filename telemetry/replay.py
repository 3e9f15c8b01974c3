"""Replay: recorded runs into a sink, as often as one likes, without a double point.

In: run directories, and the sink they should go to.
Out: the sink's files under OUT/<run id>, with a cursor of their own.
Never: writes into the directory of a recorded run.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from telemetry.errors import EXIT_BACKLOG, EXIT_OK, CommandError
from telemetry.files import read_json
from telemetry.journal.layout import segments
from telemetry.journal.recovery import readable_end
from telemetry.runs import RUN_FILE
from telemetry.sinks.runner import Reporter, SinkJob, run_sink


def replay(runs: Sequence[Path], sink: str, out: Path, wandb_mode: str | None) -> int:
    """Carry each run into the sink; the worst exit code of all.

    Raises:
        CommandError: one of them is not a recorded run; none was touched then.
    """
    for run_dir in runs:
        _check(run_dir)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    worst = EXIT_OK
    # On stderr: the console sink writes to stdout.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for run_dir in runs:
            run_id = run_dir.resolve().name
            options = {"mode": wandb_mode or _recorded_mode(run_dir)}
            job = SinkJob(sink, run_dir, out / run_id, False, options)
            mark = readable_end(run_dir / "journal")
            task = progress.add_task(run_id, total=mark.next_row if mark else None)
            worst = max(worst, run_sink(job, stop, _ProgressReporter(progress, task)))
            if stop.is_set():
                break
    if stop.is_set():
        console.print("telemetry: interrupted; the same command goes on where it stopped")
        return EXIT_BACKLOG
    for run_dir in runs:
        console.print(
            f"telemetry: {run_dir.resolve().name} is in {out / run_dir.resolve().name}",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    return worst


class _ProgressReporter(Reporter):
    """Moves a progress bar."""

    def __init__(self, progress: Progress, task: object) -> None:
        super().__init__(None)
        self._progress = progress
        self._task = task

    def __call__(self, state: str, row: int, detail: str = "") -> None:
        self._progress.update(self._task, completed=row)  # type: ignore[arg-type]


def _check(run_dir: Path) -> None:
    if read_json(run_dir / RUN_FILE) is None or not segments(run_dir / "journal"):
        raise CommandError(f"{run_dir} is not a recorded run: it should hold run.json and journal/")


def _recorded_mode(run_dir: Path) -> str:
    """The wandb mode of the live run; a run that had none of wandb then is given it now."""
    mode = str((read_json(run_dir / RUN_FILE) or {}).get("wandb_mode") or "")
    return "auto" if mode == "disabled" else mode
