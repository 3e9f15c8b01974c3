"""Run list: one line for each run of a data directory, with its last values.

In: run.json and the last rows of each journal.
Out: `RunLine` of each run, the newest first.
Never: writes; fails for one run that is damaged or goes away, which gets a line that says so.

The last rows of a run are read again only when its durable mark has moved. `RunList` may be used
from several threads: one at a time reads, for at most SECONDS_MAX; the lines of further runs
lack their values until a later call.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from shared.events import Scalar
from shared.ids import host_run_id
from shared.text import clean
from telemetry.datadir import is_held
from telemetry.journal.layout import read_mark
from telemetry.monitor.figures import loss_name, number_text
from telemetry.run_dir import RunDir, RunFile, read, runs_of
from telemetry.views.follow import as_number, opened
from telemetry.views.run_state import state_of

RUNS_MAX: Final = 1000
SECONDS_MAX: Final = 1.0
LATEST_MAX: Final = 2000
TAG_MAX_CHARS: Final = 60
TAGS_MAX: Final = 20
NAME_MAX_CHARS: Final = 200


class RunLine(msgspec.Struct, kw_only=True, frozen=True):
    """One run as it stands. Texts are cleaned; None stands for a value that is not known."""

    run_id: str
    name: str
    project: str = ""
    state: str = "unknown"
    is_running: bool = False
    is_host: bool = False
    host: str = ""
    tags: list[str] = []
    notes: str = ""
    started_s: float | None = None
    last_s: float | None = None
    step: int | None = None
    loss_name: str = ""
    loss: float | None = None
    val_loss: float | None = None
    rows: int = 0
    alerts: int = 0
    """Conditions that have begun and not ended."""
    problem: str = ""

    @property
    def duration_s(self) -> float | None:
        """Time from the start to the last event in s, None where either is not known."""
        if self.started_s is None or self.last_s is None:
            return None
        return max(0.0, self.last_s - self.started_s)


class _Last(msgspec.Struct, frozen=True):
    """The values in the last rows of a journal, up to a row."""

    next_row: int
    values: dict[str, Scalar]
    step: int | None
    wall_s: float


class RunList:
    """The runs of a data directory. Thread-safe."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._lock = threading.Lock()
        self._lasts: dict[str, _Last] = {}

    def lines(self) -> tuple[list[RunLine], bool]:
        """Return the line of each run, and False if values of some are still to be read."""
        with self._lock:
            deadline_s = time.monotonic() + SECONDS_MAX
            found = run_dirs(runs_of(self._data_dir))
            self._lasts = {path.name: v for path in found if (v := self._lasts.get(path.name))}
            is_served = is_held(self._data_dir)
            lines, is_complete = [], True
            for path in found:
                may_read = time.monotonic() < deadline_s
                line, is_read = self._line(path, is_served=is_served, may_read=may_read)
                lines.append(line)
                is_complete = is_complete and is_read
        lines.sort(key=lambda line: (line.is_host, -(line.started_s or 0)))
        return lines, is_complete

    def line(self, run_id: str) -> RunLine | None:
        """Return the line of one run, None where there is no such run."""
        path = runs_of(self._data_dir) / run_id
        if not path.is_dir():
            return None
        with self._lock:
            return self._line(path, is_served=is_held(self._data_dir), may_read=True)[0]

    def latest(self, run_id: str) -> dict[str, str]:
        """Return the last values of a run by name, cleaned, as read by the last `line`."""
        with self._lock:
            last = self._lasts.get(run_id)
        values = sorted(last.values.items())[:LATEST_MAX] if last else []
        return {
            text(name, NAME_MAX_CHARS): number_text(value)
            if isinstance(value, int | float) and not isinstance(value, bool)
            else text(value, NAME_MAX_CHARS)
            for name, value in values
        }

    def _line(self, path: Path, *, is_served: bool, may_read: bool) -> tuple[RunLine, bool]:
        place = RunDir(path)
        info = read(place.run_file, RunFile)
        mark = read_mark(place.journal)
        rows = mark.next_row if mark else 0
        last = self._lasts.get(path.name)
        if may_read and (last is None or last.next_row != rows):
            last = self._lasts[path.name] = _read_last(place.journal, rows)
        is_read = last is not None and last.next_row == rows
        return _line_of(path, info, rows, last, is_served=is_served), is_read


def run_dirs(runs_dir: Path) -> list[Path]:
    """Return the directories of the newest runs; by name, which begins with the time of start."""
    try:
        found = [path for path in runs_dir.iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(found, reverse=True)[:RUNS_MAX]


def _read_last(journal: Path, rows: int) -> _Last:
    view = opened(journal, from_tail=True)
    if view is None:
        return _Last(rows, {}, None, 0.0)
    try:
        view.poll(SECONDS_MAX)
        return _Last(rows, dict(view.latest), view.step, view.last_wall_s)
    finally:
        view.close()


def _line_of(
    path: Path, info: RunFile | None, rows: int, last: _Last | None, *, is_served: bool
) -> RunLine:
    file = info or RunFile()
    values = last.values if last else {}
    last_s = last.wall_s if last and last.wall_s else None
    name = loss_name(values)
    problem = "" if info else "run.json is not there, or not readable"
    if not rows:
        problem = problem or "nothing is recorded yet"
    return RunLine(
        run_id=path.name,
        name=text(file.name or path.name, NAME_MAX_CHARS),
        project=text(file.project, NAME_MAX_CHARS),
        state=text(state_of(file, last_s, time.time(), is_attended=is_served), TAG_MAX_CHARS),
        is_running=bool(file.state) and not file.is_ended,
        is_host=bool(file.host) and path.name == host_run_id(file.host or ""),
        host=text(file.host, NAME_MAX_CHARS),
        tags=[text(tag, TAG_MAX_CHARS) for tag in (file.tags or [])[:TAGS_MAX]],
        notes=text(file.notes),
        started_s=file.started_wall_ns / 1e9 if file.started_wall_ns else None,
        last_s=last_s,
        step=last.step if last else None,
        loss_name=text(name),
        loss=as_number(values.get(name), finite=False),
        val_loss=as_number(values.get("val/loss"), finite=False),
        rows=rows,
        alerts=len(file.alerts or []),
        problem=problem,
    )


def text(value: Any, max_chars: int = 1000) -> str:
    """Return a producer's text, cleaned: bidi and other control characters are shown as codes."""
    return clean(str(value or ""), max_chars)
