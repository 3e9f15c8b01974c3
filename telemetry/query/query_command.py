"""The command `query`: one question in SQL over recorded runs, and the answer on stdout.

In: SQL, and the places of the runs.
Out: an aligned table, lines of JSON, or CSV.
Never: changes anything recorded.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from shared.text import clean
from telemetry.errors import EXIT_DAMAGED, EXIT_OK, CommandError
from telemetry.output import OutputFailed, Page, json_value, print_json
from telemetry.query.database import Answer, Database, Limits
from telemetry.query.recordings import recordings

TABLE, JSON, CSV = ("table", "json", "csv")
SHOWN_MAX: Final = 1_000
"""Lines of a table; more are for --json and --csv."""
CELL_MAX_CHARS: Final = 60
"""Characters of a cell of the table; the other forms have all."""
DAMAGE_SHOWN: Final = 10
COLUMNS: Final = (TextColumn("reading journals"), BarColumn(), MofNCompleteColumn())


def query(question: str, places: Sequence[Path], form: str, limits: dict[str, int]) -> int:
    """Answer one question, and return the exit code: 1 where runs are damaged.

    Raises:
        CommandError: no such place, no DuckDB, or a mistake in the question.
        OutputFailed: stdout can't be written to.
    """
    found = recordings(places)
    with Database(Limits(**limits)) as database:
        # On stderr, and only for a person: the answer is on stdout.
        console = Console(stderr=True)
        with Progress(*COLUMNS, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=len(found))
            for _ in database.load(found, question):
                progress.advance(task)
        _PRINTERS[form](database.ask(question))
        for text in database.damaged[:DAMAGE_SHOWN]:
            _say(text)
        if (more := len(database.damaged) - DAMAGE_SHOWN) > 0:
            _say(f"and {more:,} more damaged stretches; `telemetry inspect` names them")
        return EXIT_DAMAGED if database.damaged else EXIT_OK


def _names(answer: Answer) -> list[str]:
    """Return the names of the columns; one that comes again gets a number."""
    names: list[str] = []
    for name, _ in answer.columns:
        again = sum(other == name or other.startswith(f"{name}_") for other in names)
        names.append(f"{name}_{again}" if name in names else name)
    return names


def _print_table(answer: Answer) -> None:
    lines: list[list[str]] = []
    is_more = False
    for line in answer.lines:
        is_more = len(lines) == SHOWN_MAX
        if is_more:
            break
        lines.append([clean(_cell(value), CELL_MAX_CHARS) for value in line])
    page = Page()
    kinds = [str(kind) for _, kind in answer.columns]
    page.aligned(
        [clean(name) for name in _names(answer)], [_is_number(kind) for kind in kinds], lines
    )
    page.print()
    if is_more:
        _say(f"the first {SHOWN_MAX:,} lines; --csv and --json give all, and LIMIT fewer")


def _print_json(answer: Answer) -> None:
    names = _names(answer)
    print_json(_plain(dict(zip(names, line, strict=True))) for line in answer.lines)


def _print_csv(answer: Answer) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # A terminal would obey what a producer has put into a name.
    shown: Callable[[str], str] = clean if sys.stdout.isatty() else str
    writer.writerow(map(shown, _names(answer)))
    try:
        for line in answer.lines:
            writer.writerow(shown(_cell(value, digits=17)) for value in line)
            sys.stdout.write(text.getvalue())
            text.seek(0)
            text.truncate()
        sys.stdout.write(text.getvalue())
        sys.stdout.flush()
    except OSError as exc:
        raise OutputFailed(str(exc)) from exc


_PRINTERS: Final[dict[str, Callable[[Answer], None]]] = {
    TABLE: _print_table,
    JSON: _print_json,
    CSV: _print_csv,
}


def _is_number(kind: str) -> bool:
    return kind.startswith(("DOUBLE", "FLOAT", "DECIMAL")) or "INT" in kind


def _cell(value: Any, digits: int = 6) -> str:
    """Return a value as text; a hole is empty."""
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value) if digits >= 17 else f"{value:.{digits}g}"
    plain = _plain(value)
    return plain if isinstance(plain, str) else str(plain)


def _plain(value: Any) -> Any:
    """Return a value of DuckDB as one that JSON has."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.hex()
    return json_value(value) if isinstance(value, str | int | float | None) else str(value)


def check_limits(memory_mb: int, threads: int) -> dict[str, int]:
    """Return the limits, checked.

    Raises:
        CommandError: one is out of its range.
    """
    if not 64 <= memory_mb <= 1_000_000:
        raise CommandError(f"--memory-mb is {memory_mb}; it must be from 64 to 1000000")
    if not 1 <= threads <= 256:
        raise CommandError(f"--threads is {threads}; it must be from 1 to 256")
    return {"memory_mb": memory_mb, "threads": threads}


def _say(text: str) -> None:
    print(f"telemetry: {clean(text, 8_000)}", file=sys.stderr)
