"""Standing of the sinks of a recorded run, from their cursors and what their supervisor saw.

In: the directory of a run.
Out: for each sink that has begun, how far it is, and what is wrong with it.
Never: starts a sink, or changes its files.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeVar

import msgspec

from telemetry.json_files import DamagedFile
from telemetry.recorded import Recorded
from telemetry.run_dir import CursorFile, RunDir, StateFile, load, sink_is_done
from telemetry.sinks.base import Position, left_out_of
from telemetry.sinks.skips import read_skips
from telemetry.sinks.wandb.offline_check import missing_rows

_T = TypeVar("_T", bound=msgspec.Struct)


class Standing(msgspec.Struct, frozen=True):
    """One sink of a run, as `inspect` shows it."""

    sink: str
    row: int
    """The row behind the last one that the sink has for sure."""
    rows_behind: int
    has_all: bool
    restarts: int
    skipped: int
    """Rows stepped over, because the sink crashed at them."""
    left_out: int
    """Values for which the sink has no place."""
    state: str
    detail: str
    gone: str
    """Rows that the sink had written and that are gone, in words; empty for none or unknown."""
    is_known: bool
    """False if its cursor is damaged."""
    damaged: list[str]


def sink_standings(recorded: Recorded, rows: int) -> list[Standing]:
    """Return the standing of each sink that has begun. rows: those of the journal."""
    paths = RunDir(recorded.run_dir).cursors.glob("*.*")
    sinks = sorted({path.stem for path in paths if path.suffix in (".json", ".state")})
    return [_standing(recorded, sink, rows) for sink in sinks]


def _standing(recorded: Recorded, sink: str, rows: int) -> Standing:
    place = RunDir(recorded.run_dir)
    cursor, of_cursor = _loaded(place.cursor(sink), CursorFile)
    told, of_state = _loaded(place.state(sink), StateFile)
    damaged = [f"sink {sink}: {text}" for text in (*of_cursor, *of_state)]
    gone = "" if of_cursor else _gone_from(recorded.run_dir, sink)
    if gone:
        damaged.append(f"sink {sink}: {gone}")
    # It has all of a run only if it is done with its last end.
    is_done = sink_is_done(cursor, recorded.facts) and cursor.row >= rows
    return Standing(
        sink=sink,
        row=cursor.row,
        rows_behind=0 if is_done else max(0, rows - cursor.row),
        has_all=is_done and not gone,
        restarts=told.restarts,
        skipped=0 if of_cursor else len(read_skips(place.skips(sink))),
        left_out=left_out_of(Position(cursor.row, cursor.state)),
        state=told.state,
        detail=told.detail,
        gone=gone,
        is_known=not of_cursor,
        damaged=damaged,
    )


def _gone_from(run_dir: Path, sink: str) -> str:
    """Describe rows that a sink had written and that are gone; empty for none, or unknown.

    Only W&B's files are read back here: a sink that is done is not started again.
    """
    if sink != "wandb":
        return ""
    with contextlib.suppress(ImportError):
        return missing_rows(run_dir)
    return ""


def _loaded(path: Path, kind: type[_T]) -> tuple[_T, list[str]]:
    """Return the content of a file, empty if there is none, and a list of what is wrong with it."""
    try:
        return load(path, kind) or kind(), []
    except DamagedFile as exc:
        return kind(), [str(exc)]
