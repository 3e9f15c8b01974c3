"""One step under `inspect --at-step`: the values of that step, of all sources.

In: the directory of a run.
Out: a table or a JSON object on stdout; the nearest steps where there is no such step.
Never: changes anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.events import DecodeError, Event, HistogramLogged, MetricsLogged
from telemetry.commands.inspect_json import VERSION
from telemetry.errors import EXIT_OK, EXIT_USAGE, CommandError
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.rows import Row, RunContext, point_of
from telemetry.output import Page, print_json
from telemetry.recorded import Recorded, open_recorded
from telemetry.run_dir import RunDir


def inspect_step(run: Path, step: int, *, is_json: bool) -> int:
    """Print the values of one step, of all sources; exit code 2 if there is no such step.

    Raises:
        CommandError: it is not a recorded run.
        OutputFailed: stdout can't be written to.
    """
    recorded = open_recorded(run)
    found = step_object(recorded, step)
    if is_json:
        print_json([found])
    elif found["is_found"]:
        _print_step(found)
    else:
        near = [str(each) for each in found["nearest"] if each is not None]
        words = f"the nearest are {' and '.join(near)}" if near else "no step is recorded"
        raise CommandError(f"run {recorded.run_id} has no step {step}; {words}")
    return EXIT_OK if found["is_found"] else EXIT_USAGE


def step_object(recorded: Recorded, step: int) -> dict[str, Any]:
    """Return the values of one step, in the order in which they were recorded.

    A restart that did the step again has rows of its own, with its own session.
    """
    values: list[dict[str, Any]] = []
    histograms: list[dict[str, Any]] = []
    below: int | None = None
    above: int | None = None
    context = RunContext()
    for row, event in _events(recorded.run_dir):
        context = context.after(row, event)
        if not isinstance(event, MetricsLogged | HistogramLogged) or event.step is None:
            continue
        if event.step < step:
            below = event.step if below is None else max(below, event.step)
        elif event.step > step:
            above = event.step if above is None else min(above, event.step)
        elif isinstance(event, HistogramLogged):
            more = {"name": event.name, "edges": event.edges, "counts": event.counts}
            histograms.append(_place(row, event.kind) | more)
        elif point := point_of(row, event, context):
            place = _place(row, event.kind)
            values += [place | {"name": n, "value": v} for n, v in point.values.items()]
    return {
        "version": VERSION,
        "run": recorded.run_id,
        "step": step,
        "is_found": bool(values or histograms),
        "nearest": [below, above],
        "values": values,
        "histograms": histograms,
    }


def _place(row: Row, kind: str) -> dict[str, Any]:
    return {
        "source": row.source,
        "session": row.session,
        "row": row.row,
        "kind": kind,
        "time_s": row.envelope.wall_ns / 1e9,
    }


def _print_step(found: dict[str, Any]) -> None:
    page = Page()
    sessions = len({each["session"] for each in found["values"] if each["source"] == "rank0"})
    again = f", done {sessions} times: the last rows stand" if sessions > 1 else ""
    page.line(f"run {found['run']}, step {found['step']}{again}")
    rows = [
        [each["source"], each["kind"], each["name"], shown_value(each["value"]), each["row"]]
        for each in found["values"]
    ]
    rows += [
        [each["source"], each["kind"], each["name"], f"{sum(each['counts']):g} values", each["row"]]
        for each in found["histograms"]
    ]
    page.table(("source", "kind", "name"), ("value", "row"), rows)
    page.print()


def shown_value(value: Any) -> str:
    """Return a value as a person reads it."""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _events(run_dir: Path) -> Iterator[tuple[Row, Event | None]]:
    """Yield the rows of a journal from its first to its last, decoded as far as known."""
    try:
        with JournalReader(RunDir(run_dir).journal, is_recorded=True) as reader:
            is_end = False
            while not is_end:
                batch = reader.read()
                is_end = batch.is_end
                for row in batch.rows:
                    yield row, event_of(row)
    except (OSError, NotAJournal) as exc:
        raise CommandError(f"{run_dir} can't be read: {exc}") from exc


def event_of(row: Row) -> Event | None:
    """Return the event of a row, or None where this version can't decode it."""
    with contextlib.suppress(DecodeError):
        return row.envelope.event()
    return None
