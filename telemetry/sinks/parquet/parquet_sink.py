"""Parquet sink: rows gathered in memory, and written as one file about every five minutes.

In: rows of one run.
Out: files under `parquet/run=<run id>/`, and the position behind the last of them.
Never: returns a position whose files are not on disk.

A position is the end of a file. Rows behind it are in memory alone: after a crash they come
again from the journal, and files that were written behind the position are removed first.
So each row is in the files once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from telemetry.journal.rows import Row, RunContext
from telemetry.run_dir import RunDir
from telemetry.sinks.base import START, Position, SinkContext
from telemetry.sinks.file_sink import FileSink
from telemetry.sinks.parquet.parquet_files import ParquetFiles
from telemetry.sinks.parquet.values_table import POLICY_VERSION, ValuesTable

FILE_INTERVAL_S: Final = 300.0
"""Age at which rows of a live run are written: what a file of a quiet run holds."""
FILE_VALUES_MAX: Final = 250_000
"""Values at which a file is written at once: about 100 MB of memory meanwhile."""

_log = logging.getLogger(__name__)


class SinkState(msgspec.Struct, frozen=True):
    """Content of Position.state."""

    version: str = ""
    context: RunContext = RunContext()
    """The facts from the rows before the position."""


class ParquetSink(FileSink):
    """Sink that writes one run as parquet files. Not thread-safe."""

    FILES = "parquet files"

    def __init__(
        self,
        context: SinkContext,
        monotonic_s: Callable[[], float] = time.monotonic,
        file_values_max: int = FILE_VALUES_MAX,
    ) -> None:
        super().__init__()
        self._context, self._monotonic_s = context, monotonic_s
        self._file_values_max = file_values_max
        self._files = ParquetFiles(
            RunDir(context.out_dir).parquet, context.run_id, context.journal, POLICY_VERSION
        )
        self._position = START
        self._table = ValuesTable(RunContext())
        self._next_row = 0
        self._oldest_s: float | None = None
        """When the oldest row in memory came; None where there is none."""

    def open(self, position: Position) -> int:
        """Remove what lies behind the position, and return its row as the first to write.

        Files of another version of the policy are written anew from row 0.
        """
        state = _state_of(position)
        if state is None:
            _log.warning(
                "sink=parquet run=%s files of another version are written anew from row 0",
                self._context.run_id,
            )  # fmt: skip
            position, state = START, SinkState(POLICY_VERSION)
        with self._translated():
            self._files.recover(position.row)
        self._table = ValuesTable(state.context)
        self._position, self._next_row, self._oldest_s = position, position.row, None
        self._is_open = True
        return position.row

    def write(self, rows: Sequence[Row]) -> None:
        self._require_open()
        for row in rows:
            if row.row < self._next_row:
                continue
            if self._oldest_s is None:
                self._oldest_s = self._monotonic_s()
            self._table.add(row)
            self._next_row = row.row + 1
            if len(self._table) >= self._file_values_max:
                self._write_file()

    def commit(self) -> Position:
        """Return the end of the last file; write one first where the rows in memory are old."""
        self._require_open()
        if self._oldest_s is not None:
            is_old = self._monotonic_s() - self._oldest_s >= FILE_INTERVAL_S
            # Asked to stop: nothing is left for a later start that may never come.
            if is_old or self._context.wait(0):
                self._write_file()
        return self._position

    def finish(self, status: str | None, exit_code: int | None) -> Position:
        """Write what is left: the end of the run was a row like any other."""
        self._require_open()
        self._write_file()
        return self._position

    def _write_file(self) -> None:
        """Write the rows in memory, and move the position behind them.

        Rows that have no value move it alone: there is no file without values.
        """
        first_row = self._position.row
        if len(self._table):
            with self._translated():
                self._files.write(self._table.take(), first_row, self._next_row)
        state = msgspec.to_builtins(SinkState(POLICY_VERSION, self._table.context))
        self._position, self._oldest_s = Position(self._next_row, state), None


def _state_of(position: Position) -> SinkState | None:
    """Return what a position says, or None where another version of the policy made it."""
    if position == START:
        return SinkState(POLICY_VERSION)
    values: dict[str, Any] = position.state
    if values.get("version") != POLICY_VERSION:
        return None
    try:
        return msgspec.convert(values, SinkState)
    except (msgspec.ValidationError, ValueError):
        return None
