"""The TensorBoard sink: policy, encoding and files behind the interface of every sink.

In: rows of one run.
Out: event files under `tensorboard/`, and a position that they bear out.
Never: holds a position that is not on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from telemetry.rows import Row
from telemetry.sinks.base import START, Position, SinkContext, SinkUnavailable
from telemetry.sinks.tensorboard.files import DamagedFiles, EventFiles
from telemetry.sinks.tensorboard.policy import Policy, PolicyState
from telemetry.sinks.tensorboard.summaries import encode_entry

_log = logging.getLogger(__name__)


class SinkState(msgspec.Struct):
    """Position.state: the commit of the files, and what the policy knows."""

    files: dict[str, int] = {}
    policy: PolicyState = msgspec.field(default_factory=PolicyState)


class TensorBoardSink:
    """One run as event files. Not thread-safe."""

    def __init__(self, context: SinkContext) -> None:
        self._files = EventFiles(context.out_dir / "tensorboard")
        self._policy = Policy(PolicyState())
        self._next_row = 0
        self._is_open = False

    def open(self, position: Position) -> int:
        """Cut what a crash left behind the position; the first row to write is its row.

        Where committed files are damaged or gone, everything is written anew
        from the first row.
        """
        with self._translated():
            try:
                self._recover(position)
            except (DamagedFiles, msgspec.ValidationError) as exc:
                _log.warning("TensorBoard files are written anew from row 0: %s", exc)
                self._recover(START)
        self._is_open = True
        return self._next_row

    def write(self, rows: Sequence[Row]) -> None:
        self._require_open()
        with self._translated():
            for row in rows:
                self._write_row(row)

    def commit(self) -> Position:
        self._require_open()
        with self._translated():
            lengths = self._files.sync()
        state: dict[str, Any] = msgspec.to_builtins(SinkState(lengths, self._policy.state()))
        return Position(self._next_row, state)

    def finish(self, status: str | None, exit_code: int | None) -> Position:
        """The run's end is a row like any other, so there is nothing to add to it."""
        return self.commit()

    def close(self) -> None:
        self._is_open = False
        self._files.discard()

    def _recover(self, position: Position) -> None:
        state = msgspec.convert(position.state, SinkState)
        self._files.recover(position.row, state.files)
        self._policy = Policy(state.policy)
        self._next_row = position.row

    def _write_row(self, row: Row) -> None:
        if row.row < self._next_row:
            return
        for entry in self._policy.entries(row):
            self._files.append(entry.directory, row.row, entry.wall_ns, encode_entry(entry))
        self._next_row = row.row + 1

    def _require_open(self) -> None:
        if not self._is_open:
            raise SinkUnavailable("TensorBoard files have to be opened, or opened again, first")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Disk errors as the sink's own. What reached the disk is then unknown until `open`."""
        try:
            yield
        except OSError as exc:
            self.close()
            raise SinkUnavailable(f"TensorBoard files: {exc}") from exc
