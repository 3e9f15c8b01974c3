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

from rich import box
from rich.console import Console
from rich.table import Table

from shared.events import DecodeError, Gap, HistogramLogged, MetricsLogged
from telemetry.errors import CommandError
from telemetry.files import read_json
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.scan import TAIL, Damage
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
    """
    try:
        contents = read_contents(run_dir / "journal")
    except NotAJournal as exc:
        raise CommandError(str(exc)) from exc
    except OSError as exc:
        raise CommandError(f"{run_dir} can't be read: {exc.strerror}") from exc
    # What producers called things is text, not markup.
    console = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
    _print_run(console, run_dir, contents)
    _print_events(console, contents)
    _print_missing(console, contents)
    _print_sinks(console, run_dir, contents)
    return EXIT_DAMAGED if _print_damage(console, contents) else 0


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
    kind = _printable(row.envelope.tag if measured is None else measured.kind)
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
            contents.missing[_printable(kind), _printable(event.reason)] += count
        contents.unknown_ms += event.unknown_ms or 0.0


def _print_run(console: Console, run_dir: Path, contents: Contents) -> None:
    info = read_json(run_dir / RUN_FILE) or {}
    state = info.get("status") or info.get("state") or "unknown"
    size = sum(path.stat().st_size for path in (run_dir / "journal").iterdir())
    name = f" ({_printable(str(info['name']))})" if "name" in info else ""
    console.print(
        f"run {info.get('run_id', run_dir.resolve().name)}{name}: {contents.rows:,} rows, "
        f"{size / 1e6:.1f} MB, {state}",
    )


def _print_events(console: Console, contents: Contents) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("source", "kind"):
        table.add_column(name, no_wrap=True)
    for name in ("events", "per second", "steps"):
        table.add_column(name, justify="right", no_wrap=True)
    for (source, kind), tally in sorted(contents.tallies.items()):
        span_s = (tally.last_ns - (tally.first_ns or 0)) / 1e9
        rate = f"{(tally.count - 1) / span_s:.2f}" if span_s > 0 and tally.count > 1 else ""
        sessions = len(contents.sessions[source])
        shown = source if sessions == 1 else f"{source} ({sessions} sessions)"
        table.add_row(shown, kind, f"{tally.count:,}", rate, _steps(tally))
    console.print(table)


def _print_missing(console: Console, contents: Contents) -> None:
    if not contents.missing and not contents.unknown_ms:
        console.print("missing: nothing, as far as its producers could count")
        return
    for (kind, reason), count in sorted(contents.missing.items()):
        console.print(f"missing: {count:,} events of kind {kind}: {reason}")
    if contents.unknown_ms:
        console.print(f"missing: up to {contents.unknown_ms:.0f} ms unknown")


def _print_sinks(console: Console, run_dir: Path, contents: Contents) -> None:
    paths = (run_dir / "cursors").glob("*.*")
    for sink in sorted({path.stem for path in paths if path.suffix in (".json", ".state")}):
        cursor: dict[str, Any] = read_json(run_dir / "cursors" / f"{sink}.json") or {}
        told: dict[str, Any] = read_json(state_path(run_dir, sink)) or {}
        row = int(cursor.get("row", 0))
        lag = "has all of it" if cursor.get("done") else f"{contents.rows - row:,} rows behind"
        line = f"sink {sink}: at row {row:,}, {lag}"
        if told.get("restarts"):
            line += f", {told['restarts']} restarts"
        if told.get("state") in TROUBLED:
            line += f", {told['state']}: {_printable(str(told.get('detail', '')))}"
        console.print(line)


def _print_damage(console: Console, contents: Contents) -> bool:
    is_damaged = False
    for damage in contents.damage:
        # A torn tail was never acknowledged: it is how a crash looks, not damage.
        is_damaged = is_damaged or damage.kind != TAIL
        last = "?" if damage.next_row is None else str(damage.next_row - 1)
        console.print(
            f"{damage.kind}: rows {damage.first_row} to {last}, "
            f"bytes {damage.offset} to {damage.end} {damage.detail}",
        )
    console.print("damage: " + ("see above" if is_damaged else "none"))
    return is_damaged


def _printable(text: str) -> str:
    """Text that can't move a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _steps(tally: Tally) -> str:
    if tally.first_step is None:
        return ""
    return f"{tally.first_step:,} to {tally.last_step:,}"
