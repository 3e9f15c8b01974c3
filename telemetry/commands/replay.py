"""Replay: writes recorded runs into a sink; repeated, it adds no point twice.

In: run directories, and the name of a sink.
Out: the sink's files under OUT/<directory of the run>, with a cursor of their own.
Never: writes into the directory of a recorded run, or is silent about rows that it left out.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared.text import clean
from telemetry.errors import EXIT_BACKLOG, EXIT_DAMAGED, EXIT_OK, CommandError
from telemetry.journal.readable import readable_end
from telemetry.logs import LINE_MAX_CHARS
from telemetry.recorded import Recorded, missing_rows, open_recorded
from telemetry.run_dir import RunDir
from telemetry.sinks.base import Sink, SinkContext
from telemetry.sinks.delivery import PACE, Pace
from telemetry.sinks.registry import make_sink
from telemetry.sinks.runner import Reporter, SinkJob, run_sink

COLUMNS: Final = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())


def replay(
    runs: Sequence[Path],
    sink: str,
    out: Path,
    wandb_mode: str | None,
    *,
    per_core: bool = False,
    make: Callable[[str, SinkContext], Sink] = make_sink,
    pace: Pace = PACE,
) -> int:
    """Write each run into the sink, and return the largest exit code.

    per_core: add a chart of each processor core in TensorBoard. make: function that makes a
    sink by its name. pace: how much is written at a time.

    Raises:
        CommandError: one of them is not a recorded run; none was touched then.
    """
    recorded = [open_recorded(run_dir) for run_dir in runs]
    _check_places(recorded)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    codes = [EXIT_OK]
    # On stderr: the console sink writes to stdout.
    with Progress(*COLUMNS, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        for run in recorded:
            place = out / _name(run)
            options = _options(run, wandb_mode) | ({"per_core": "1"} if per_core else {})
            job = SinkJob(sink, run.run_dir, place, False, options, make, pace)
            codes.append(_replay_one(run, job, stop, progress))
            if stop.is_set():
                break
    if stop.is_set():
        _say("interrupted; the same command goes on where it stopped")
        return EXIT_BACKLOG
    return max(codes)


def _replay_one(run: Recorded, job: SinkJob, stop: threading.Event, progress: Progress) -> int:
    """Replay one run, and print where its files are and which rows could not be read."""
    for text in run.damaged:
        _say(f"{_name(run)} is damaged: {text}")
    missing, damage = missing_rows(run.run_dir)
    mark = readable_end(RunDir(run.run_dir).journal)
    total = None if mark is None else max(0, mark.next_row - missing)
    progress.add_task(clean(_name(run), 64), total=total)
    report = _ProgressReporter(progress)
    code = run_sink(job, stop, report)
    if missing or damage:
        _say(
            f"{_name(run)}: {missing:,} rows are damaged or gone and were left out; "
            f"`python -m telemetry inspect {run.run_dir}` names them"
        )
    if code == EXIT_OK:
        report.finish()
        _say(f"{_name(run)} is in {job.out_dir}")
    return max(code, EXIT_DAMAGED) if missing or damage else code


class _ProgressReporter(Reporter):
    """A reporter that moves the newest progress bar, whose total is the number of readable rows."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(None)
        self._progress = progress
        self._task = progress.tasks[-1]

    def __call__(self, state: str, row: int, detail: str = "") -> None:
        total = self._task.total
        shown = row if total is None else min(row, int(total))
        self._progress.update(self._task.id, completed=shown)

    def finish(self) -> None:
        """Set the bar to its end, since all readable rows are written."""
        if self._task.total is not None:
            self._progress.update(self._task.id, completed=self._task.total)


def _check_places(recorded: Sequence[Recorded]) -> None:
    """Refuse two runs that would go to one place.

    Raises:
        CommandError: it names the directories.
    """
    by_name: dict[str, Path] = {}
    for run in recorded:
        other = by_name.setdefault(_name(run), run.run_dir)
        if other.resolve() != run.run_dir.resolve():
            raise CommandError(
                f"{other} and {run.run_dir} have one name; replay them into two --out directories"
            )


def _name(run: Recorded) -> str:
    return run.run_dir.resolve().name


def _options(run: Recorded, wandb_mode: str | None) -> dict[str, str]:
    """Return the options of the sink: the W&B mode that was asked for, or none.

    Without the option the sink uses the mode of the live run. A run with W&B disabled gets
    "auto": online where there is an API key.
    """
    if wandb_mode is None and not run.facts.wants("wandb"):
        wandb_mode = "auto"
    return {"mode": wandb_mode} if wandb_mode else {}


def _say(text: str) -> None:
    print(f"telemetry: {clean(text, LINE_MAX_CHARS)}", file=sys.stderr)
