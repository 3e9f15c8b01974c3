"""Database: DuckDB with the runs that a question is about, and closed to everything else.

In: recordings, and one question.
Out: names, types and lines of the answer.
Never: reads a file that is not of those runs, writes one outside a directory of its own that
goes at the end, or takes more memory or threads than it was given.

Not thread-safe.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import duckdb
import msgspec

from shared.closing import Closing
from telemetry.errors import CommandError
from telemetry.output import json_value
from telemetry.query.recordings import Recording, rows_of
from telemetry.query.tables import JOURNALED, NAMES, RUNS, SESSIONS, TABLES, VIEWS
from telemetry.run_dir import RunDir, RunFile, read
from telemetry.sinks.parquet.parquet_files import VALUES, quoted
from telemetry.sinks.parquet.values_table import ValuesTable
from telemetry.views.listing import listed

_T = TypeVar("_T")
FETCHED: Final = 1_000
CHUNK_VALUES: Final = 200_000
SPILL_MAX: Final = "20GB"


@dataclass(frozen=True)
class Limits:
    """The bounds on memory and threads of one question."""

    memory_mb: int = 1024
    threads: int = 2


class Answer(NamedTuple):
    """The answer to a question: its columns, by name and type of DuckDB, and its lines."""

    columns: list[tuple[str, str]]
    lines: Iterator[tuple[Any, ...]]


class Database(Closing):
    """One question's database, in a directory of its own under the system's for temporary files."""

    def __init__(self, limits: Limits) -> None:
        self.damaged: list[str] = []
        """What could not be read of the runs, in words."""
        self._place = tempfile.TemporaryDirectory(prefix="telemetry-query-")
        spill = Path(self._place.name) / "spill"
        settings: dict[str, Any] = {
            "threads": limits.threads,
            "memory_limit": f"{limits.memory_mb}MB",
            "temp_directory": str(spill),
            "max_temp_directory_size": SPILL_MAX,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        path = Path(self._place.name) / "runs.duckdb"
        self._connection = duckdb.connect(str(path), config=settings)

    def load(self, found: Sequence[Recording], question: str) -> Iterator[Recording]:
        """Load what the question names; yields each run whose journal is read, for progress.

        Raises:
            CommandError: the disk or the memory does not suffice.
        """
        named = {name for name in TABLES if re.search(rf"\b{name}\b", question, re.IGNORECASE)}
        with _translated(""):
            self._connection.execute("SET TimeZone = 'UTC'")
            self._load_runs(found if "runs" in named else ())
            self._connection.execute(JOURNALED)
            is_wanted = bool(named - {"runs"})
            for recording in found if is_wanted else ():
                yield recording
                self._load_journal(recording)
            files = [path for each in found for path in each.files] if is_wanted else []
            self._make_views(files)
            self._close_to_all_but(files)

    def ask(self, question: str) -> Answer:
        """Answer a question.

        Raises:
            CommandError: it is no question in SQL, or can't be answered; in one line.
        """
        with _translated("; the tables are " + ", ".join(TABLES)):
            statements = self._connection.extract_statements(question)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise CommandError("query: give one SELECT; nothing else is answered")
            self._interruptible(lambda: self._connection.execute(statements[0]))
            columns = [(str(name), str(kind)) for name, kind, *_ in self._connection.description]
            return Answer(columns, self._lines())

    def _lines(self) -> Iterator[tuple[Any, ...]]:
        with _translated(""):
            while lines := self._interruptible(lambda: self._connection.fetchmany(FETCHED)):
                yield from lines

    def _interruptible(self, act: Callable[[], _T]) -> _T:
        """Do something long in DuckDB, so that Ctrl-C ends it: by itself it does not hear it."""
        with ThreadPoolExecutor(1) as worker:
            doing = worker.submit(act)
            try:
                return doing.result()
            except KeyboardInterrupt:
                self._connection.interrupt()
                raise

    def close(self) -> None:
        """Close the database and remove its directory. May be called twice."""
        self._connection.close()
        self._place.cleanup()

    def _load_runs(self, found: Sequence[Recording]) -> None:
        runs = []
        for run in listed([each.path for each in found]):
            told = read(RunDir(Path(run.path)).run_file, RunFile) or RunFile()
            runs.append({**msgspec.structs.asdict(run), "config": told.config})
        text = msgspec.json.encode(json_value(runs)).decode()
        self._connection.execute(RUNS, {"runs": text})

    def _load_journal(self, recording: Recording) -> None:
        table = ValuesTable(recording.context)
        for rows in rows_of(recording, self.damaged):
            for row in rows:
                table.add(row)
                if len(table) >= CHUNK_VALUES:
                    self._insert(recording.path.name, table)
        if len(table):
            self._insert(recording.path.name, table)

    def _insert(self, run_id: str, table: ValuesTable) -> None:
        self._connection.register("columns", table.take())
        self._connection.execute(
            f"INSERT INTO journaled BY NAME SELECT {quoted(run_id)} AS run, * FROM ({VALUES})"
        )
        self._connection.unregister("columns")

    def _make_views(self, files: Sequence[Path]) -> None:
        parts = [f"SELECT {NAMES} FROM journaled"]
        if files:
            names = ", ".join(quoted(str(path.absolute())) for path in files)
            parts.append(
                f"SELECT {NAMES} FROM read_parquet([{names}], hive_partitioning = true, "
                "hive_types = {'run': VARCHAR})"
            )
        self._connection.execute(f"CREATE VIEW events AS {' UNION ALL '.join(parts)}")
        self._interruptible(lambda: self._connection.execute(SESSIONS))
        for name, text in VIEWS.items():
            self._connection.execute(f"CREATE VIEW {name} AS {text}")

    def _close_to_all_but(self, files: Sequence[Path]) -> None:
        names = ", ".join(quoted(str(path.absolute())) for path in files)
        self._connection.execute(f"SET allowed_paths = [{names}]")
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")


@contextlib.contextmanager
def _translated(more: str) -> Iterator[None]:
    """Turn DuckDB's errors into one line. more: text for a mistake in the question."""
    try:
        yield
    except duckdb.OutOfMemoryException as exc:
        raise CommandError(f"query: {_line(exc)}; give it more with --memory-mb") from exc
    except duckdb.Error as exc:
        raise CommandError(f"query: {_line(exc)}{more}") from exc


def _line(exc: Exception) -> str:
    """Return what DuckDB says, without the drawing of where in the question it is."""
    said = str(exc).partition("\n\nLINE ")[0]
    return " ".join(said.split())
