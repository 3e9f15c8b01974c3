"""A sink that writes each row as a line of a file, and dies where it is told to.

Its commit is the length of the file, as TensorBoard's is: a real, small sink.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from telemetry.journal.rows import Row
from telemetry.sinks.base import Position, SinkContext


class Killed(BaseException):
    """Stands for kill -9: no handler of the code under test may stop it."""


class Trouble:
    """What goes wrong, and when: `at` names a place, which fails on its nth visit."""

    def __init__(self, at: str = "", nth: int = 1, error: BaseException | None = None) -> None:
        self.at = at
        self.left = nth
        self.error = error or Killed(at)

    def visit(self, place: str) -> None:
        if place == self.at:
            self.left -= 1
            if self.left == 0:
                raise self.error


class LinesSink:
    """One run as a file of lines."""

    def __init__(self, context: SinkContext, trouble: Trouble) -> None:
        self.path = context.out_dir / "lines.jsonl"
        self.finished: list[tuple[str | None, int | None]] = []
        self.closed = 0
        self._trouble = trouble
        self._next_row = 0

    def open(self, position: Position) -> int:
        self._trouble.visit("open")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        # What a crash left behind the last position is cut off.
        os.truncate(self.path, position.state.get("bytes", 0))
        self._next_row = position.row
        return position.row

    def write(self, rows: Sequence[Row]) -> None:
        self._trouble.visit("before write")
        with self.path.open("a") as file:
            for number, row in enumerate(rows):
                if number == len(rows) // 2:
                    file.flush()
                    self._trouble.visit("in write")
                line: dict[str, Any] = {"row": row.row, "seq": row.seq, "source": row.source}
                file.write(json.dumps(line) + "\n")
        self._trouble.visit("after write")
        self._next_row = rows[-1].row + 1

    def commit(self) -> Position:
        self._trouble.visit("before commit")
        position = Position(self._next_row, {"bytes": self.path.stat().st_size})
        self._trouble.visit("after commit")
        return position

    def finish(self, status: str | None, exit_code: int | None) -> Position:
        self._trouble.visit("before finish")
        self.finished.append((status, exit_code))
        position = self.commit()
        self._trouble.visit("after finish")
        return position

    def close(self) -> None:
        self.closed += 1


def lines(path: Path) -> list[int]:
    """The rows in the file, in their order."""
    return [json.loads(line)["row"] for line in path.read_text().splitlines()]
