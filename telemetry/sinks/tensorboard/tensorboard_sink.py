"""TensorBoard sink: policy, encoding and files behind the sink interface.

In: rows of one run.
Out: event files under `tensorboard/`, and the position that they hold on disk.
Never: returns a position whose files are not on disk.

A position is made in this order, and each step is synced before the next: the event
files, the file of last steps, and then (by the owner of the cursor) the position with
the lengths of both. So after a crash at any point the position on disk names files of
at least those lengths, and `open` cuts them back to exactly those.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from telemetry.journal.rows import Row
from telemetry.run_dir import RunDir
from telemetry.run_names import name_run
from telemetry.sinks.base import START, Position, SinkContext
from telemetry.sinks.file_sink import FileSink
from telemetry.sinks.tensorboard.bounds import BOUNDS, Bounds
from telemetry.sinks.tensorboard.event_files import DamagedFiles, EventFiles
from telemetry.sinks.tensorboard.lasts_file import DamagedLasts, LastsCommit, LastsFile
from telemetry.sinks.tensorboard.placement import LeftOut
from telemetry.sinks.tensorboard.row_entries import Policy, PolicyState
from telemetry.sinks.tensorboard.starts import Starts
from telemetry.sinks.tensorboard.summaries import encode_entry

POLICY_VERSION: Final = "3"
"""Version of the rules from rows to entries; files of another version are written anew.
The first version had no number."""
CORES_OPTION: Final = "per_core"

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class OtherPolicy(Exception):
    """Error: the files were written by another version of the policy."""


class SinkState(msgspec.Struct):
    """Content of Position.state: the commits of the files, and the state of the policy."""

    version: str = ""
    files: dict[str, int] = {}
    lasts: LastsCommit = LastsCommit()
    policy: PolicyState = msgspec.field(default_factory=PolicyState)
    # broken: rows or parts of rows whose encoding failed. left_out: these, and the values
    # that found no place.
    broken: int = 0
    left_out: int = 0


class TensorBoardSink(FileSink):
    """Sink that writes one run as event files. Not thread-safe."""

    FILES = "TensorBoard files"

    def __init__(self, context: SinkContext, bounds: Bounds = BOUNDS) -> None:
        super().__init__()
        self._context = context
        self._bounds = bounds
        self._has_cores = bool(context.options.get(CORES_OPTION))
        self._version = POLICY_VERSION + ("+cores" if self._has_cores else "")
        self._starts = Starts(context.out_dir)
        self._files = EventFiles(
            RunDir(context.out_dir).tensorboard, self._starts, bounds.buffer_bytes
        )
        self._lasts = LastsFile(context.out_dir, bounds.lasts_bytes)
        self._policy = Policy(PolicyState())
        self._next_row = 0
        self._broken = 0
        self._told = LeftOut()

    def open(self, position: Position) -> int:
        """Cut the files back to the position, and return its row as the first to write.

        If committed files are damaged or missing, or were written by another version of
        the policy, everything is written anew from row 0.
        """
        with self._translated():
            try:
                self._recover(position)
            except (DamagedFiles, DamagedLasts, OtherPolicy, ValueError) as exc:
                _log.warning(
                    "sink=tensorboard run=%s files are written anew from row 0: %s",
                    self._context.run_id, exc,
                )  # fmt: skip
                self._recover(START)
        name_run(self._context.out_dir, self._context.run.name or "")
        self._is_open = True
        return self._next_row

    def write(self, rows: Sequence[Row]) -> None:
        self._require_open()
        with self._translated():
            for row in rows:
                self._write_row(row)

    def flush(self) -> None:
        self._require_open()
        with self._translated():
            self._files.flush()

    def commit(self) -> Position:
        self._require_open()
        with self._translated():
            # 1. Sync the event files.
            lengths = self._files.sync()
            # 2. Sync the last steps.
            changes = self._policy.take_changes()
            start = self._starts.number() if changes else 0
            lasts = self._lasts.commit(changes, self._policy.everything(), start)
        # 3. Return the position, which names both.
        self._tell_left_out()
        left_out = self._policy.left_out.total + self._broken
        policy = self._policy.state()
        state = SinkState(self._version, lengths, lasts, policy, self._broken, left_out)
        built: dict[str, Any] = msgspec.to_builtins(state)
        return Position(self._next_row, built)

    def finish(self, status: str | None, exit_code: int | None) -> Position:
        """Commit: the end of the run was a row like any other, so nothing is added."""
        return self.commit()

    def close(self) -> None:
        super().close()
        self._files.discard()

    def _recover(self, position: Position) -> None:
        # Check the version first: in another version the other fields may differ.
        if position.state and position.state.get("version") != self._version:
            raise OtherPolicy("they are of another version of the sink")
        state = msgspec.convert(position.state, SinkState)
        changes = self._lasts.open(state.lasts)
        policy = Policy(state.policy, changes, has_cores=self._has_cores, bounds=self._bounds)
        self._files.recover(position.row, state.files)
        self._policy, self._broken, self._next_row = policy, state.broken, position.row
        self._told = msgspec.structs.replace(policy.left_out)

    def _write_row(self, row: Row) -> None:
        if row.row < self._next_row:
            return
        for entry in self._guarded(row, lambda: self._policy.entries(row)) or ():
            event = self._guarded(row, lambda: encode_entry(entry))  # noqa: B023
            if event is not None:
                self._files.append(entry.directory, row.row, entry.wall_ns, event)
        self._next_row = row.row + 1

    def _guarded(self, row: Row, make: Callable[[], _T]) -> _T | None:
        """Call make and return its result; if it raises, count that and return None."""
        try:
            return make()
        except MemoryError:  # of the process, not of the value
            raise
        except Exception:  # values may be anything; the rows behind are not affected
            self._broken += 1
            if self._broken == 1:
                _log.warning(
                    "sink=tensorboard run=%s a part of row %d is left out",
                    self._context.run_id, row.row, exc_info=True,
                )  # fmt: skip
            return None

    def _tell_left_out(self) -> None:
        now, told = self._policy.left_out, self._told
        if now.levels and not told.levels:
            _log.warning(
                "sink=tensorboard run=%s values are left out whose step went back more than "
                "%d times", self._context.run_id, self._bounds.levels - 1,
            )  # fmt: skip
        if now.tags and not told.tags:
            _log.warning(
                "sink=tensorboard run=%s values are left out beyond the first %d tags",
                self._context.run_id, self._bounds.tags,
            )  # fmt: skip
        self._told = msgspec.structs.replace(now)
