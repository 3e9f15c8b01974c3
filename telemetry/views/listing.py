"""Listing: the runs of a data directory, each with its state, last values and size.

In: a data directory, from run.json and the tail of each journal alone.
Out: one `ListedRun` for each run.
Never: reads a whole journal, or trusts a name: they are to be cleaned where they are shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from shared.files import bytes_on_disk
from shared.ids import RUN_ID
from telemetry.datadir import is_held
from telemetry.errors import CommandError
from telemetry.run_dir import RunDir, RunFile, read, runs_of
from telemetry.views.run_state import state_of
from telemetry.views.tail import read_tail


class ListedRun(msgspec.Struct, frozen=True):
    """One run in a list, as `ls --json` prints it.

    state: see run_state.
    step, loss: the last ones of training near the end of the journal, else null. seconds: from
    the start to the last event. bytes: on disk, with the files of its sinks.
    """

    run: str
    path: str
    name: str | None
    project: str | None
    state: str
    exit_code: int | None
    tags: list[str]
    group: str | None
    host: str | None
    started_s: float | None
    last_s: float | None
    seconds: float | None
    rows: int
    step: int | None
    loss: float | None
    bytes: int


def run_dirs(data_dir: Path) -> list[Path]:
    """Return the directories of the runs in a data directory, or in a directory of runs.

    Raises:
        CommandError: it is neither; the message says what is there.
    """
    try:
        for place in (runs_of(data_dir), data_dir):
            if place.is_dir():
                found = sorted(path for path in place.iterdir() if _is_run(path))
                if found or place.name == runs_of(data_dir).name:
                    return found
        if not data_dir.exists():
            raise CommandError(f"there is no {data_dir}")
    except (OSError, ValueError) as exc:
        raise CommandError(f"{data_dir} can't be read: {getattr(exc, 'strerror', exc)}") from exc
    if data_dir.is_dir():
        raise CommandError(f"{data_dir} is not a data directory: it has no runs/")
    raise CommandError(f"{data_dir} is a file; give a data directory")


def listed(paths: list[Path]) -> Iterator[ListedRun]:
    """Yield the runs in these directories; one that was removed meanwhile is left out."""
    held: dict[Path, bool] = {}
    for path in paths:
        data_dir = path.parent.parent
        if data_dir not in held:
            held[data_dir] = is_held(data_dir)
        if path.is_dir():
            yield listed_run(path, is_attended=held[data_dir])


def listed_run(path: Path, *, is_attended: bool) -> ListedRun:
    """Return one run. is_attended: a sidecar is at work in its data directory."""
    run = read(RunDir(path).run_file, RunFile) or RunFile()
    tail = read_tail(path)
    started_s = None if run.started_wall_ns is None else run.started_wall_ns / 1e9
    last_s = None if tail.last_wall_ns is None else tail.last_wall_ns / 1e9
    has_span = started_s is not None and last_s is not None
    return ListedRun(
        run=path.name,
        path=str(path),
        name=run.name,
        project=run.project,
        state=state_of(run, last_s, time.time(), is_attended=is_attended),
        exit_code=run.exit_code,
        tags=run.tags or [],
        group=run.group or None,
        host=run.host or None,
        started_s=started_s,
        last_s=last_s,
        seconds=max(0.0, round(last_s - started_s, 3)) if has_span else None,  # type: ignore[operator]
        rows=tail.rows,
        step=tail.step,
        loss=tail.loss,
        bytes=bytes_on_disk(path),
    )


def _is_run(path: Path) -> bool:
    return bool(RUN_ID.fullmatch(path.name)) and path.is_dir() and RunDir(path).journal.is_dir()
