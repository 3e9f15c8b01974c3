"""Inspect: prints the contents of a run's journal, and any damage to it.

In: the directory of a run.
Out: tables on stdout; exit code 1 if anything is damaged or missing.
Never: changes anything.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from shared.events import DecodeError, Gap, HistogramLogged, MetricsLogged, PartialEvent
from telemetry.commands.last_words import LastWords
from telemetry.commands.sink_standing import Standing, sink_standings
from telemetry.errors import EXIT_DAMAGED, EXIT_OK, CommandError
from telemetry.journal.layout import read_mark
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.rows import Row
from telemetry.journal.scan import TAIL, Damage
from telemetry.output import Page
from telemetry.recorded import Recorded, cut_off, open_recorded
from telemetry.run_dir import RunDir

LEFT_OUT_SHOWN = 20
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

    @property
    def per_second(self) -> float | None:
        """Events a second between the first and the last; None where there is no such time."""
        span_s = (self.last_ns - (self.first_ns or 0)) / 1e9
        return (self.count - 1) / span_s if span_s > 0 and self.count > 1 else None


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
    recorded, contents = look_into(run_dir)
    page = Page()
    _print_run(page, recorded, contents)
    _print_events(page, contents)
    _print_missing(page, contents)
    _print_left_out(page, contents)
    for line in contents.last_words.lines(recorded.facts.status):
        page.line(line)
    for line in _time_lines(run_dir):
        page.line(line)
    standings = sink_standings(recorded, contents.rows)
    damaged = [*recorded.damaged, *_print_sinks(page, standings)]
    for line in damaged:
        page.line(f"damaged: {line}")
    is_damaged = _print_damage(page, contents, is_damaged=bool(damaged))
    page.print()
    return EXIT_DAMAGED if is_damaged else EXIT_OK


def _time_lines(run_dir: Path) -> list[str]:
    """Return the lines that tell where the time of the run went."""
    # Imported here: they need numpy, which no other part of a sidecar loads.
    from telemetry.views.goodput import goodput_of_run
    from telemetry.views.goodput_lines import goodput_lines

    return goodput_lines(goodput_of_run(run_dir))


def look_into(run_dir: Path) -> tuple[Recorded, Contents]:
    """Read a run, its small files and its whole journal.

    Raises:
        CommandError: there is no journal, or it can't be read.
    """
    recorded = open_recorded(run_dir)
    try:
        return recorded, read_contents(RunDir(run_dir).journal)
    except (OSError, NotAJournal) as exc:
        raise CommandError(f"{run_dir} can't be read: {exc}") from exc


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
    size = journal_bytes(recorded)
    page.line(
        f"run {recorded.run_id} ({run.name}): {contents.rows:,} rows, {size / 1e6:.1f} MB, {state}"
    )


def journal_bytes(recorded: Recorded) -> int:
    """Return the bytes of all files of a run's journal."""
    return sum(path.stat().st_size for path in RunDir(recorded.run_dir).journal.iterdir())


def is_broken(contents: Contents) -> bool:
    """Return True if rows are damaged or gone.

    A torn tail was never acknowledged: it is how a crash looks, not damage.
    """
    return any(damage.kind != TAIL for damage in contents.damage)


def _print_events(page: Page, contents: Contents) -> None:
    rows = []
    for (source, kind), tally in sorted(contents.tallies.items()):
        rate = "" if tally.per_second is None else f"{tally.per_second:.2f}"
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


def _print_sinks(page: Page, standings: list[Standing]) -> list[str]:
    """Print how far each sink is, and return descriptions of damaged sink files."""
    for standing in standings:
        if standing.is_known:
            page.line(f"sink {standing.sink}: {_sink_words(standing)}")
    return [text for standing in standings for text in standing.damaged]


def _sink_words(standing: Standing) -> str:
    """Describe how far a sink is."""
    words = f"at row {standing.row:,}, "
    if standing.gone and not standing.rows_behind:
        words += standing.gone
    elif standing.has_all:
        words += "has all of it"
    else:
        words += f"{standing.rows_behind:,} rows behind"
    if standing.restarts:
        words += f", {standing.restarts} restarts"
    if standing.skipped:
        words += f", {standing.skipped:,} rows stepped over"
    if standing.left_out:
        words += f", {standing.left_out:,} values left out"
    if standing.state in TROUBLED:
        words += f", {standing.state}: {standing.detail}"
    return words


def _print_damage(page: Page, contents: Contents, *, is_damaged: bool) -> bool:
    is_damaged = is_damaged or is_broken(contents)
    for damage in contents.damage:
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
