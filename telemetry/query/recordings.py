"""Recordings: the runs that a question is about, and how each can be read.

In: data directories, directories of runs, and what `replay --to parquet` has written.
Out: for each run its parquet files, and the rows of its journal that these lack.
Never: changes a file, or takes files for more than their cursor says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from shared.ids import RUN_ID
from telemetry.errors import CommandError
from telemetry.journal.identity import journal_uuid
from telemetry.journal.layout import segments
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.rows import Row, RunContext
from telemetry.journal.scan import TAIL
from telemetry.run_dir import CursorFile, RunDir, read, runs_of
from telemetry.sinks.parquet.parquet_files import first_row_of, partition_of
from telemetry.sinks.parquet.parquet_sink import SinkState
from telemetry.sinks.parquet.values_table import POLICY_VERSION


class Recording(NamedTuple):
    """One run. files: its parquet. next_row: the row of the journal to go on from, None where
    there is no journal; context: the facts from the rows before it."""

    path: Path
    files: list[Path]
    next_row: int | None
    context: RunContext


def recordings(places: Sequence[Path]) -> list[Recording]:
    """Return the runs in these places, each once.

    Raises:
        CommandError: a place can't be read, or has no run in it.
    """
    found: dict[str, Recording] = {}
    for place in places:
        for path in _run_dirs(place):
            other = found.get(path.name)
            if other is None:
                found[path.name] = _recording(path)
            elif other.path.resolve() != path.resolve():
                raise CommandError(f"{other.path} and {path} are two recordings of one run")
    return list(found.values())


def rows_of(recording: Recording, damaged: list[str]) -> Iterator[list[Row]]:
    """Yield the rows of a journal that its parquet lacks; what is wrong is added to damaged."""
    if recording.next_row is None:
        return
    name = recording.path.name
    try:
        journal = RunDir(recording.path).journal
        with JournalReader(journal, recording.next_row, is_recorded=True) as reader:
            is_end = False
            while not is_end:
                batch = reader.read()
                is_end = batch.is_end
                for each in batch.damage:
                    if each.kind != TAIL:
                        last = "?" if each.next_row is None else each.next_row - 1
                        stretch = f"rows {each.first_row} to {last} can't be read"
                        damaged.append(f"run {name}: {stretch}: {each.kind}")
                yield batch.rows
    except (OSError, NotAJournal) as exc:
        damaged.append(f"run {name} can't be read: {exc}")


def _run_dirs(place: Path) -> list[Path]:
    try:
        if not place.exists():
            raise CommandError(f"there is no {place}")
        if not place.is_dir():
            raise CommandError(f"{place} is a file; give a data directory, or a run in one")
        if _has_rows(place):
            # The name of a run, also where the place is called `.`
            return [place.resolve() if place.name in ("", "..") else place]
        for parent in (runs_of(place), place):
            if parent.is_dir():
                found = sorted(path for path in parent.iterdir() if _has_rows(path))
                if found or parent != place:
                    return found
    except (OSError, ValueError) as exc:
        raise CommandError(f"{place} can't be read: {getattr(exc, 'strerror', exc)}") from exc
    raise CommandError(f"{place} has no recorded run in it")


def _has_rows(path: Path) -> bool:
    if not (RUN_ID.fullmatch(path.resolve().name) and path.is_dir()):
        return False
    return bool(segments(RunDir(path).journal)) or bool(_files(path, path.resolve().name))


def _files(path: Path, run_id: str) -> list[Path]:
    directory = partition_of(RunDir(path).parquet, run_id)
    if not directory.is_dir():
        return []
    return sorted(each for each in directory.iterdir() if first_row_of(each) is not None)


def _recording(path: Path) -> Recording:
    journal, files = RunDir(path).journal, _files(path, path.name)
    if not segments(journal):
        return Recording(path, files, None, RunContext())
    cursor = read(RunDir(path).cursor("parquet"), CursorFile)
    state = _state_of(cursor)
    if cursor is None or state is None or cursor.journal not in ("", journal_uuid(journal)):
        return Recording(path, [], 0, RunContext())
    # Behind the cursor a file may be one that a crash has left.
    sure = [each for each in files if (first_row_of(each) or 0) < cursor.row]
    if not sure and cursor.row:
        return Recording(path, [], 0, RunContext())
    return Recording(path, sure, cursor.row, state.context)


def _state_of(cursor: CursorFile | None) -> SinkState | None:
    if cursor is None or cursor.state.get("version") != POLICY_VERSION:
        return None
    try:
        return msgspec.convert(cursor.state, SinkState)
    except (msgspec.ValidationError, ValueError):
        return None
