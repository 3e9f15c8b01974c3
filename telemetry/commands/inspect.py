"""Inspect: prints the contents of a run's journal, and any damage to it.

In: the directory of a run.
Out: tables on stdout; exit code 1 if anything is damaged or missing.
Never: changes anything.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from shared.events import DecodeError, Gap, HistogramLogged, MetricsLogged, PartialEvent
from telemetry.commands.last_words import LastWords
from telemetry.errors import EXIT_DAMAGED, EXIT_OK, CommandError
from telemetry.journal.layout import read_mark
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.rows import Row
from telemetry.journal.scan import TAIL, Damage
from telemetry.json_files import DamagedFile
from telemetry.output import Page
from telemetry.recorded import Recorded, cut_off, open_recorded
from telemetry.run_dir import CursorFile, RunDir, RunFile, StateFile, load, sink_is_done
from telemetry.sinks.base import Position, left_out_of
from telemetry.sinks.skips import read_skips
from telemetry.sinks.wandb.offline_check import missing_rows

LEFT_OUT_SHOWN = 20
_T = TypeVar("_T", bound=msgspec.Struct)
TROUBLED = ("unavailable", "rejected", "crashed", "killed")
"""States of a sink that are shown, because they need attention."""


@dataclass
class Tally:
    """Count, time span and step span of one kind of event from one source."""

    count: int = 0
    first_ns: int | None = None
    last_ns: int = 0
    first_step: int | None = None
    last_step: int | None = None


@dataclass
class Contents:
    """All that `inspect` reads from a journal."""

    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    sessions: dict[str, set[str]] = field(default_factory=dict)
    missing: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Parts of events that could not be recorded: how often, by name and reason."""
    left_out_count: int = 0
    unknown_ms: float = 0.0
    last_words: LastWords = field(default_factory=LastWords)
    damage: list[Damage] = field(default_factory=list)
    rows: int = 0


def inspect(run_dir: Path) -> int:
    """Print what is in the run's journal.

    Raises:
        CommandError: there is no journal, or it can't be read.
        OutputFailed: stdout can't be written to.
    """
    recorded = open_recorded(run_dir)
    try:
        contents = read_contents(RunDir(run_dir).journal)
    except (OSError, NotAJournal) as exc:
        raise CommandError(f"{run_dir} can't be read: {exc}") from exc
    page = Page()
    _print_run(page, recorded, contents)
    _print_events(page, contents)
    _print_missing(page, contents)
    _print_left_out(page, contents)
    for line in contents.last_words.lines(recorded.facts.status):
        page.line(line)
    damaged = [*recorded.damaged, *_print_sinks(page, recorded, contents)]
    for line in damaged:
        page.line(f"damaged: {line}")
    is_damaged = _print_damage(page, contents, is_damaged=bool(damaged))
    page.print()
    return EXIT_DAMAGED if is_damaged else EXIT_OK


def read_contents(journal: Path) -> Contents:
    """Read a journal from its first row to its last."""
    contents = Contents()
    mark = read_mark(journal)
    with JournalReader(journal, is_recorded=True) as reader:
        while True:
            batch = reader.read()
            for row in batch.rows:
                _count(contents, row)
            contents.damage += batch.damage
            if batch.is_end:
                break
        contents.damage += cut_off(mark, reader.next_row)
        contents.rows = reader.next_row
    return contents


def _count(contents: Contents, row: Row) -> None:
    try:
        event = row.envelope.event()
    except DecodeError:
        event = None
    # The kind as it was sent: kinds of a newer producer are shown under their own names.
    measured = event if isinstance(event, MetricsLogged | HistogramLogged) else None
    kind = row.envelope.tag if measured is None else measured.kind
    tally = contents.tallies.setdefault((row.source, kind), Tally())
    wall_ns = row.envelope.wall_ns
    tally.count += 1
    tally.first_ns = wall_ns if tally.first_ns is None else tally.first_ns
    tally.last_ns = wall_ns
    if measured is not None and measured.step is not None:
        tally.first_step = measured.step if tally.first_step is None else tally.first_step
        tally.last_step = measured.step
    contents.sessions.setdefault(row.source, set()).add(row.session)
    contents.last_words.see(row, event)
    if isinstance(event, PartialEvent) and event.left_out_count:
        contents.left_out.update(event.left_out.items())
        contents.left_out_count += event.left_out_count
    if isinstance(event, Gap):
        for kind, count in event.by_kind.items():
            contents.missing[kind, event.reason] += count
        contents.unknown_ms += event.unknown_ms or 0.0


def _print_run(page: Page, recorded: Recorded, contents: Contents) -> None:
    run = recorded.facts
    state = run.status or run.state
    if run.exit_code:
        state = f"{state}, exit code {run.exit_code}"
    size = sum(path.stat().st_size for path in RunDir(recorded.run_dir).journal.iterdir())
    page.line(
        f"run {recorded.run_id} ({run.name}): {contents.rows:,} rows, {size / 1e6:.1f} MB, {state}"
    )


def _print_events(page: Page, contents: Contents) -> None:
    rows = []
    for (source, kind), tally in sorted(contents.tallies.items()):
        span_s = (tally.last_ns - (tally.first_ns or 0)) / 1e9
        rate = f"{(tally.count - 1) / span_s:.2f}" if span_s > 0 and tally.count > 1 else ""
        sessions = len(contents.sessions[source])
        shown = source if sessions == 1 else f"{source} ({sessions} sessions)"
        rows.append([shown, kind, f"{tally.count:,}", rate, _steps(tally)])
    page.table(("source", "kind"), ("events", "per second", "steps"), rows)


def _print_missing(page: Page, contents: Contents) -> None:
    if not contents.missing and not contents.unknown_ms:
        page.line("missing: nothing, as far as its producers could count")
        return
    for (kind, reason), count in sorted(contents.missing.items()):
        page.line(f"missing: {count:,} events of kind {kind}: {reason}")
    if contents.unknown_ms:
        page.line(
            f"missing: perhaps the last events of a producer that ended without saying so: those "
            f"of {_duration(contents.unknown_ms / 1e3)}, which can't be counted"
        )


def _print_left_out(page: Page, contents: Contents) -> None:
    """Name the parts of events that could not be recorded, the most frequent first."""
    if not contents.left_out_count:
        return
    page.line(f"left out: {contents.left_out_count:,} values or settings of recorded events")
    for (name, reason), count in contents.left_out.most_common(LEFT_OUT_SHOWN):
        page.line(f"  {name}: {reason}" + (f", {count:,} times" if count > 1 else ""))
    if (more := len(contents.left_out) - LEFT_OUT_SHOWN) > 0:
        page.line(f"  and {more:,} other names")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"up to {max(seconds, 0.1):,.1f} seconds"
    return f"up to {seconds / 60:,.0f} minutes"


def _print_sinks(page: Page, recorded: Recorded, contents: Contents) -> list[str]:
    """Print how far each sink is, and return descriptions of damaged sink files."""
    damaged: list[str] = []
    place = RunDir(recorded.run_dir)
    paths = place.cursors.glob("*.*")
    for sink in sorted({path.stem for path in paths if path.suffix in (".json", ".state")}):
        cursor, of_cursor = _loaded(place.cursor(sink), CursorFile)
        told, of_state = _loaded(place.state(sink), StateFile)
        damaged += [f"sink {sink}: {text}" for text in (*of_cursor, *of_state)]
        if not of_cursor:
            skipped = len(read_skips(place.skips(sink)))
            words = _sink_words(cursor, told, recorded.facts, contents.rows, skipped)
            if gone := _gone_from(recorded.run_dir, sink):
                damaged.append(f"sink {sink}: {gone}")
                words = words.replace("has all of it", gone)
            page.line(f"sink {sink}: {words}")
    return damaged


def _sink_words(cursor: CursorFile, told: StateFile, run: RunFile, rows: int, skipped: int) -> str:
    """Describe how far a sink is. It has all of a run only if it is done with its last end."""
    row = cursor.row
    if sink_is_done(cursor, run) and row >= rows:
        words = f"at row {row:,}, has all of it"
    else:
        words = f"at row {row:,}, {max(0, rows - row):,} rows behind"
    if told.restarts:
        words += f", {told.restarts} restarts"
    if skipped:
        words += f", {skipped:,} rows stepped over"
    if left_out := left_out_of(Position(row, cursor.state)):
        words += f", {left_out:,} values left out"
    if told.state in TROUBLED:
        words += f", {told.state}: {told.detail}"
    return words


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


def _print_damage(page: Page, contents: Contents, *, is_damaged: bool) -> bool:
    for damage in contents.damage:
        # A torn tail was never acknowledged: it is how a crash looks, not damage.
        is_damaged = is_damaged or damage.kind != TAIL
        last = "?" if damage.next_row is None else str(damage.next_row - 1)
        page.line(
            f"{damage.kind}: rows {damage.first_row} to {last}, "
            f"bytes {damage.offset} to {damage.end} {damage.detail}",
        )
    page.line("damage: " + ("see above" if is_damaged else "none"))
    return is_damaged


def _steps(tally: Tally) -> str:
    if tally.first_step is None:
        return ""
    return f"{tally.first_step:,} to {tally.last_step:,}"
