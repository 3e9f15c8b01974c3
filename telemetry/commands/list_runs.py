"""List: prints the runs of a data directory, sorted and filtered, as a table or as JSON.

In: a data directory.
Out: a line for each run on stdout, in as many columns as the terminal has.
Never: changes anything, or shows a control character of a producer.
"""

from __future__ import annotations

import fnmatch
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shared.text import clean
from telemetry.errors import EXIT_OK
from telemetry.output import OutputFailed, print_json
from telemetry.views.listing import ListedRun, listed, run_dirs

GAP: Final = 2
TEXT_MAX_CHARS: Final = 24
TEXT_MIN_CHARS: Final = 6
NAME_CHARS: Final = 16
"""Characters of a name that go before hosts and tags."""


@dataclass(frozen=True)
class Choice:
    """The runs that are wanted, and their order."""

    states: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    pattern: str = ""
    """A glob over run id and name; empty for all."""
    sort: str = "started"
    is_reverse: bool = False

    def takes(self, run: ListedRun) -> bool:
        """Return True if a run is wanted: one of the states and projects, and all of the tags."""
        names = (run.run, run.name or "")
        return (
            (not self.states or run.state in self.states)
            and (not self.projects or run.project in self.projects)
            and set(self.tags) <= set(run.tags)
            and (not self.pattern or any(fnmatch.fnmatchcase(n, self.pattern) for n in names))
        )


SORT_KEYS: Final[dict[str, Callable[[ListedRun], Any]]] = {
    "started": lambda run: run.started_s,
    "loss": lambda run: run.loss,
    "step": lambda run: run.step,
    "duration": lambda run: run.seconds,
    "size": lambda run: run.bytes,
    "state": lambda run: run.state,
    "name": lambda run: run.name,
    "run": lambda run: run.run,
}
DESCENDING: Final = ("started", "step", "duration", "size")
"""Orders in which the largest comes first: the newest, the longest, the largest run."""


def list_runs(data_dir: Path, choice: Choice, *, is_json: bool) -> int:
    """Print the runs of a data directory, and return the exit code.

    Raises:
        CommandError: it is no data directory.
        OutputFailed: stdout can't be written to.
    """
    paths = run_dirs(data_dir)
    runs = ordered([run for run in listed(paths) if choice.takes(run)], choice)
    if is_json:
        print_json(runs)
        return EXIT_OK
    if not runs:
        text = "no run there is as asked for" if paths else "it has no runs yet"
        print(f"telemetry: {clean(str(data_dir))}: {text}", file=sys.stderr)
        return EXIT_OK
    try:
        for line in table(runs, shutil.get_terminal_size((80, 24)).columns):
            print(line)
        sys.stdout.flush()
    except OSError as exc:
        raise OutputFailed(str(exc)) from exc
    return EXIT_OK


def ordered(runs: list[ListedRun], choice: Choice) -> list[ListedRun]:
    """Return the runs in the order asked for; those without the value come last."""
    key = SORT_KEYS[choice.sort]
    known = [run for run in runs if not _is_missing(key(run))]
    missing = [run for run in runs if _is_missing(key(run))]
    known.sort(key=lambda run: run.run)
    known.sort(key=key, reverse=(choice.sort in DESCENDING) != choice.is_reverse)
    return [*known, *missing]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def table(runs: Sequence[ListedRun], width: int) -> list[str]:
    """Return the runs as lines of at most `width` characters, with a line of titles.

    Where there is no room for all, hosts, tags and names are cut; then the columns of hosts and
    of tags are left out, and names are cut further. The id of a run is always whole.
    """
    columns: dict[str, list[str]] = {
        "run": [clean(run.run, 64) for run in runs],
        "name": [clean(run.name or "", TEXT_MAX_CHARS) for run in runs],
        "state": [run.state for run in runs],
        "step": ["" if run.step is None else str(run.step) for run in runs],
        "loss": ["" if run.loss is None else f"{run.loss:.4g}" for run in runs],
        "time": [_time(run.seconds) for run in runs],
        "size": [_size(run.bytes) for run in runs],
        "host": [clean(run.host or "", TEXT_MAX_CHARS) for run in runs],
        "tags": [clean(",".join(run.tags), TEXT_MAX_CHARS) for run in runs],
    }
    widths = {
        title: max(len(title), *(len(cell) for cell in cells)) for title, cells in columns.items()
    }
    _fit(widths, width)
    lines = []
    for cells in (list(columns), *(list(row) for row in zip(*columns.values(), strict=True))):
        shown = [
            clean(cell, widths[title]).rjust(widths[title])
            if title in ("step", "loss", "time", "size")
            else clean(cell, widths[title]).ljust(widths[title])
            for title, cell in zip(columns, cells, strict=True)
            if title in widths
        ]
        lines.append((" " * GAP).join(shown).rstrip())
    return lines


def _fit(widths: dict[str, int], width: int) -> None:
    """Cut names, and leave columns out, until the rest fits."""

    def excess() -> int:
        return sum(widths.values()) + GAP * (len(widths) - 1) - width

    def cut(title: str, least: int) -> None:
        if title in widths:
            widths[title] = max(min(widths[title], least), widths[title] - max(0, excess()))

    for title in ("host", "tags"):
        cut(title, TEXT_MIN_CHARS)
    cut("name", NAME_CHARS)
    for title in ("host", "tags"):
        if excess() > 0:
            del widths[title]
    cut("name", TEXT_MIN_CHARS)
    for title in ("name", "size", "time"):
        if excess() > 0:
            del widths[title]


def _time(seconds: float | None) -> str:
    """Return a duration in at most six characters, such as 12h05m."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 100 else f"{hours // 24}d{hours % 24:02}h"


def _size(size: float) -> str:
    """Return a size in bytes in at most five characters, such as 12.3M."""
    for unit in ("B", "K", "M", "G", "T"):
        if size < 999.5:
            return f"{size:.0f}{unit}" if unit == "B" or size >= 99.95 else f"{size:.1f}{unit}"
        size /= 1000
    return f"{size:.0f}P"
