"""Rows under `inspect --follow`: printed as they become durable, until the run has ended.

In: the directory of a run that may be written.
Out: a line for each row on stdout, for people or as JSON.
Never: prints a row that is not on disk, prints one twice, or changes anything.

A segment that is full, or a sidecar that is started again, makes no difference: rows are
numbered through.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from shared.events import Event, HistogramLogged, MetricsLogged
from shared.text import clean
from telemetry.commands.inspect_step import event_of, shown_value
from telemetry.errors import EXIT_OK, CommandError
from telemetry.journal.readable import readable_end
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.rows import Row
from telemetry.journal.scan import TAIL, Damage
from telemetry.output import OutputFailed, json_value
from telemetry.recorded import open_recorded
from telemetry.run_dir import RunDir, RunFile, read
from telemetry.sinks.console import LINE_MAX_CHARS, utc, words

POLL_S: Final = 0.2


def follow(
    run: Path,
    first_row: int | None,
    *,
    is_json: bool,
    wait: Callable[[float], object] | None = None,
) -> int:
    """Print rows as they become durable, until the run has ended and all are printed.

    first_row: where to begin; None for the rows that come from now on.

    Raises:
        CommandError: it is not a recorded run, or was removed meanwhile.
        OutputFailed: stdout can't be written to.
    """
    wait = wait or threading.Event().wait
    recorded = open_recorded(run)
    journal = RunDir(run).journal
    mark = readable_end(journal)
    begin = (mark.next_row if mark else 0) if first_row is None else first_row
    show = _json_line if is_json else _text_line
    try:
        with JournalReader(journal, begin, is_recorded=True) as reader:
            while True:
                # Read run.json before the journal: if it says "ended", the read sees all rows.
                is_over = (read(RunDir(run).run_file, RunFile) or recorded.facts).is_ended
                batch = reader.read()
                _print_lines(show(recorded.run_id, row) for row in batch.rows)
                _say_damage(batch.damage)
                if batch.is_end and not reader.is_blind:
                    if is_over:
                        return EXIT_OK
                    if not journal.is_dir():
                        raise CommandError(f"{run} was removed meanwhile")
                    wait(POLL_S)
                elif batch.is_end:
                    wait(POLL_S)
    except (OSError, NotAJournal) as exc:
        raise CommandError(f"{run} can't be read: {exc}") from exc


def _print_lines(lines: Iterable[str]) -> None:
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except OSError as exc:
        raise OutputFailed(str(exc)) from exc


def _say_damage(found: list[Damage]) -> None:
    for damage in found:
        if damage.kind != TAIL:
            last = "?" if damage.next_row is None else damage.next_row - 1
            print(
                f"telemetry: rows {damage.first_row} to {last} can't be read: {damage.kind}",
                file=sys.stderr,
            )


def _json_line(run_id: str, row: Row) -> str:
    event = event_of(row)
    body = None if event is None else json_value(msgspec.structs.asdict(event))
    shown = {
        "run": run_id,
        "row": row.row,
        "source": row.source,
        "session": row.session,
        "seq": row.seq,
        "is_late": row.is_late,
        "time_s": row.envelope.wall_ns / 1e9,
        "event": row.envelope.tag,
        "body": body,
    }
    return msgspec.json.encode(shown).decode()


def _text_line(run_id: str, row: Row) -> str:
    event = event_of(row)
    said = None if event is None else words(row, event)
    kind, text = said or (row.envelope.tag, _brief(event))
    line = f"{row.row:>8}  {row.source:<14}  {kind:<7}  {text}"
    return f"{utc(row.envelope.wall_ns)}  {clean(line, LINE_MAX_CHARS)}"


def _brief(event: Event | None) -> str:
    """Return a few words on an event that the console does not print."""
    if isinstance(event, MetricsLogged):
        step = "" if event.step is None else f"step {event.step:,}  "
        return step + "  ".join(
            f"{name} {shown_value(value)}" for name, value in event.values.items()
        )
    if isinstance(event, HistogramLogged):
        return f"step {event.step}  {event.name}: {len(event.counts)} bins"
    return "" if event is not None else "can't be decoded by this version"
