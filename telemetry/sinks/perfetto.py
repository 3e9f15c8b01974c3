"""The perfetto sink: a run as a trace, to be opened at ui.perfetto.dev or chrome://tracing.

In: rows of one run.
Out: a file of JSON: spans, counters and instants of the Trace Event format (trace_events.py).
Never: holds the trace in memory, or loads Perfetto.

    perfetto/trace.json    one JSON array, an event a line:  [ <event> ,<event> ... ]

A commit syncs the file and notes its length; after a crash it is cut there. What ends the file
(the ends of what is open, and the bracket) is behind that length: it is written when the run has
ended, and cut off where a run goes on. The format allows that the bracket is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from shared.files import make_directory, write_all
from telemetry.journal.rows import Row
from telemetry.run_dir import RunDir
from telemetry.sinks.base import Position, SinkContext, SinkUnavailable
from telemetry.sinks.trace_events import TraceEvent, TraceEvents, TraceState

BEGIN: Final = b"["
END: Final = b"\n]\n"
_ENCODER: Final = msgspec.json.Encoder()


class SinkState(msgspec.Struct):
    """Length of the file at a position, and what the trace has open there."""

    size: int = 0
    last_wall_ns: int = 0
    trace: TraceState = msgspec.field(default_factory=TraceState)


class PerfettoSink:
    """One run as a trace. Not thread-safe."""

    def __init__(self, context: SinkContext) -> None:
        self._path = RunDir(context.out_dir).perfetto / "trace.json"
        self._per_core = context.options.get("per_core") == "1"
        self._fd = -1
        self._row = 0
        self._state = SinkState()
        self._events = TraceEvents(self._state.trace, per_core=self._per_core)

    def open(self, position: Position) -> int:
        """Open the file and cut it to its length at the position; a shorter one begins anew."""
        try:
            make_directory(self._path.parent)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._row, self._state = position.row, _state_of(position)
            if not 0 < self._state.size <= os.fstat(self._fd).st_size:
                self._row, self._state = 0, SinkState()
            os.ftruncate(self._fd, self._state.size)
        except OSError as exc:
            raise _away(self._path, exc) from exc
        self._events = TraceEvents(self._state.trace, per_core=self._per_core)
        return self._row

    def write(self, rows: Sequence[Row]) -> None:
        found: list[TraceEvent] = []
        for row in rows:
            found += self._events.of(row)
            self._state.last_wall_ns = max(self._state.last_wall_ns, row.envelope.wall_ns)
            self._row = row.row + 1
        self._state.size += self._append(found)

    def commit(self) -> Position:
        self._sync()
        return Position(self._row, msgspec.to_builtins(self._state))

    def finish(self, status: str | None, exit_code: int | None) -> Position:
        """End the file; the position is that before its end, where a run that goes on continues."""
        position = self.commit()
        size = self._append(self._events.closing(self._state.last_wall_ns))
        self._put(END if self._state.size + size else BEGIN + END, self._state.size + size)
        self._sync()
        return position

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, events: Iterable[TraceEvent]) -> int:
        """Write events behind the length of the file, and return how many bytes that is."""
        lines = [b"\n" + _ENCODER.encode(event) for event in events]
        if not lines:
            return 0
        data = (b"," if self._state.size else BEGIN) + b",".join(lines)
        self._put(data, self._state.size)
        return len(data)

    def _put(self, data: bytes, at: int) -> None:
        try:
            write_all(self._fd, data, at)
        except OSError as exc:
            raise _away(self._path, exc) from exc

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as exc:
            raise _away(self._path, exc) from exc


def _state_of(position: Position) -> SinkState:
    try:
        return msgspec.convert(position.state, SinkState)
    except msgspec.ValidationError:
        return SinkState()


def _away(path: Path, exc: OSError) -> SinkUnavailable:
    return SinkUnavailable(f"{path}: {exc.strerror}")
