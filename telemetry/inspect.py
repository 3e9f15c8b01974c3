"""Inspect: what is in a journal, and whether all of it can be read.

In: the directory of a run.
Out: tables on stdout; exit code 1 if anything is damaged or missing.
Never: changes anything.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.events import DecodeError, Gap, HistogramLogged, MetricsLogged
from telemetry.datadir import check_run_dir
from telemetry.errors import EXIT_OK, CommandError
from telemetry.files import DamagedFile, load_json
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.scan import TAIL, Damage
from telemetry.output import Page
from telemetry.rows import Row
from telemetry.runs import RUN_FILE
from telemetry.sinkprocess import state_path

EXIT_DAMAGED = 1
TROUBLED = ("unavailable", "rejected", "crashed", "killed")
"""States of a sink that somebody who looks at a run should know of."""


@dataclass
class Tally:
    """What was found of one kind of event from one source."""

    count: int = 0
    first_ns: int | None = None
    last_ns: int = 0
    first_step: int | None = None
    last_step: int | None = None


@dataclass
class Contents:
    """All that inspect tells."""

    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    sessions: dict[str, set[str]] = field(default_factory=dict)
    missing: Counter[tuple[str, str]] = field(default_factory=Counter)
    unknown_ms: float = 0.0
    damage: list[Damage] = field(default_factory=list)
    rows: int = 0


def inspect(run_dir: Path) -> int:
    """Print what is in the run's journal.

    Raises:
        CommandError: it has none.
        OutputFailed: nobody takes what is printed.
    """
    check_run_dir(run_dir)
    try:
        contents = read_contents(run_dir / "journal")
    except NotAJournal as exc:
        raise CommandError(str(exc)) from exc
    except OSError as exc:
        raise CommandError(f"{run_dir} can't be read: {exc.strerror}") from exc
    page = Page()
    damaged = [*_print_run(page, run_dir, contents)]
    _print_events(page, contents)
    _print_missing(page, contents)
    damaged += _print_sinks(page, run_dir, contents)
    for line in damaged:
        page.line(f"damaged: {line}")
    is_damaged = _print_damage(page, contents, is_damaged=bool(damaged))
    page.print()
    return EXIT_DAMAGED if is_damaged else EXIT_OK


def read_contents(journal: Path) -> Contents:
    """Read a journal from its first row to its last."""
    contents = Contents()
    with JournalReader(journal, is_recorded=True) as reader:
        while True:
            batch = reader.read()
            for row in batch.rows:
                _count(contents, row)
            contents.damage += batch.damage
            if batch.is_end:
                contents.rows = reader.next_row
                return contents


def _count(contents: Contents, row: Row) -> None:
    try:
        event = row.envelope.event()
    except DecodeError:
        event = None
    # As it was said: a newer producer's kinds are shown, not folded into ours.
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
    if isinstance(event, Gap):
        for kind, count in event.by_kind.items():
            contents.missing[kind, event.reason] += count
        contents.unknown_ms += event.unknown_ms or 0.0


def _print_run(page: Page, run_dir: Path, contents: Contents) -> list[str]:
    """Say what is known of the run; returns what of that is damaged."""
    info, damaged = _loaded(run_dir / RUN_FILE)
    run_id, name = info.get("run_id", run_dir.resolve().name), info.get("name")
    state = info.get("status") or info.get("state") or "unknown"
    if info.get("exit_code"):
        state = f"{state}, exit code {info['exit_code']}"
    size = sum(path.stat().st_size for path in (run_dir / "journal").iterdir())
    shown = "" if name is None else f" ({name})"
    page.line(f"run {run_id}{shown}: {contents.rows:,} rows, {size / 1e6:.1f} MB, {state}")
    return damaged


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
            f"missing: the last words of a producer that ended without saying so; it may have "
            f"said more for {_duration(contents.unknown_ms / 1e3)} that nobody could count"
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"up to {max(seconds, 0.1):,.1f} seconds"
    return f"up to {seconds / 60:,.0f} minutes"


def _print_sinks(page: Page, run_dir: Path, contents: Contents) -> list[str]:
    """Say how far each sink is; returns which of their files are damaged."""
    damaged: list[str] = []
    paths = (run_dir / "cursors").glob("*.*")
    for sink in sorted({path.stem for path in paths if path.suffix in (".json", ".state")}):
        cursor, of_cursor = _loaded(run_dir / "cursors" / f"{sink}.json")
        told, of_state = _loaded(state_path(run_dir, sink))
        row = cursor.get("row", 0)
        if type(row) is not int or row < 0:
            of_cursor = [*of_cursor, f"{sink}.json has row {row!r}"]
        damaged += [f"sink {sink}: {text}" for text in (*of_cursor, *of_state)]
        if of_cursor:
            continue
        lag = "has all of it" if cursor.get("done") else f"{contents.rows - row:,} rows behind"
        line = f"sink {sink}: at row {row:,}, {lag}"
        if told.get("restarts"):
            line += f", {told['restarts']} restarts"
        if told.get("state") in TROUBLED:
            line += f", {told['state']}: {told.get('detail', '')}"
        page.line(line)
    return damaged


def _loaded(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what a small file holds, and what is wrong with it."""
    try:
        return load_json(path) or {}, []
    except DamagedFile as exc:
        return {}, [str(exc)]


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
