"""Parquet files: columns written whole, named by the first row of the journal in them.

In: columns in memory, and the rows that they cover.
Out: files that are there whole or not at all, whatever is killed.
Never: changes a file that has its name.

A file is written beside its name, synced, renamed, and its directory synced. So every file
with a name is whole and on disk.

Not thread-safe.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, Final

import duckdb

from shared.files import make_directory, sync_directory, sync_file

MEMORY_MAX: Final = "256MB"
NAME: Final = re.compile(r"(\d{20})\.parquet")
BEGUN: Final = re.compile(r"\.\d{20}\.parquet\.tmp")
SETTINGS: Final[dict[str, Any]] = {
    "threads": 1,
    "memory_limit": MEMORY_MAX,
    # Nothing is written beside the file itself, and nothing is fetched from anywhere.
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}

VALUES: Final = """
    SELECT
        source::VARCHAR AS source,
        session::VARCHAR AS session,
        "row",
        late,
        kind::VARCHAR AS kind,
        CASE WHEN has_step THEN step END AS step,
        make_timestamptz(wall_us) AS time,
        name::VARCHAR AS name,
        CASE WHEN is_nan THEN 'nan'::DOUBLE WHEN has_value THEN value END AS value,
        CASE WHEN has_integer THEN integer END AS integer,
        text::VARCHAR AS text
    FROM columns
"""
"""The columns of a file, from those of a values table that is registered as `columns`."""
_COPY: Final = (
    f"COPY ({VALUES}) TO {{path}} (FORMAT parquet, COMPRESSION zstd, KV_METADATA {{metadata}})"
)


class ParquetFiles:
    """The files of one run."""

    def __init__(self, parquet_dir: Path, run_id: str, journal: str, version: str) -> None:
        """Name the place; nothing is made yet. journal: uuid of the journal, empty if unknown."""
        self.directory = partition_of(parquet_dir, run_id)
        self._metadata = {"run": run_id, "journal": journal, "policy_version": version}

    def recover(self, next_row: int) -> None:
        """Remove files from next_row on, and any file that was not whole.

        They are of rows that no cursor has; all of them are in the journal and come again.

        Raises:
            OSError: they can't be removed, or the directory can't be made.
        """
        make_directory(self.directory)
        removed = [path for path in self.directory.iterdir() if _is_unsure(path, next_row)]
        for path in sorted(removed, reverse=True):
            path.unlink(missing_ok=True)
        if removed:
            sync_directory(self.directory)

    def write(self, columns: dict[str, Any], first_row: int, next_row: int) -> Path:
        """Write the file of the rows from first_row up to next_row, durably, and return it.

        Raises:
            OSError: it can't be written; no file of that name is there.
        """
        path = self.directory / f"{first_row:020}.parquet"
        beside = path.with_name(f".{path.name}.tmp")
        metadata = self._metadata | {"first_row": str(first_row), "next_row": str(next_row)}
        try:
            beside.unlink(missing_ok=True)
            _write(columns, beside, metadata)
            sync_file(beside)
            beside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        sync_directory(self.directory)
        return path


def partition_of(parquet_dir: Path, run_id: str) -> Path:
    """Return the directory of a run's files, which is named as hive partitions are."""
    return parquet_dir / f"run={run_id}"


def first_row_of(path: Path) -> int | None:
    """Return the first row of a file of ours, or None where it is none."""
    match = NAME.fullmatch(path.name)
    return None if match is None else int(match[1])


def _is_unsure(path: Path, next_row: int) -> bool:
    """Return True for a file that was begun, or that holds rows from next_row on."""
    first_row = first_row_of(path)
    return bool(BEGUN.fullmatch(path.name)) or (first_row is not None and first_row >= next_row)


def quoted(text: str) -> str:
    """Return a text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def _write(columns: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    pairs = ", ".join(f"{name}: {quoted(text)}" for name, text in metadata.items())
    # A connection for each file: between two of them its memory is free.
    with contextlib.closing(duckdb.connect(config=SETTINGS)) as database:
        database.register("columns", columns)
        try:
            database.execute(_COPY.format(path=quoted(str(path)), metadata="{" + pairs + "}"))
        except duckdb.IOException as exc:
            raise OSError(str(exc)) from exc
