"""Cursors: how far each sink has got, kept across restarts.

In: the position that a sink vouches for.
Out: the position to go on from.
Never: reads the journal. One process at a time holds the cursor of a (run, sink).
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from telemetry.files import read_json, write_json
from telemetry.sinks.base import START, Position


class CursorLocked(Exception):
    """Another process is this sink for this run."""


class Cursor:
    """The cursor file of one sink, locked while it is held."""

    def __init__(self, out_dir: Path, sink: str, run_id: str) -> None:
        """Take hold of the cursor.

        Raises:
            CursorLocked: somebody else has it.
            OSError: the directory can't be written.
            ValueError: it is another run's, or damaged.
        """
        directory = out_dir / "cursors"
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{sink}.json"
        self._run_id = run_id
        self._fd = os.open(directory / f"{sink}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self.close()
            raise CursorLocked(f"{self.path} is held by another process") from exc
        except OSError as exc:
            self.close()
            raise OSError(exc.errno, f"{directory} can't be locked: {exc.strerror}") from exc
        try:
            self.position, self.is_done, self._ending = _read(self.path, run_id)
        except BaseException:
            self.close()
            raise

    def commit(self, position: Position, *, is_done: bool = False, ending: int = 0) -> None:
        """Move to this position, durably; nothing is written where nothing changed.

        is_done: the sink has all of the run as of its ending of this number.
        """
        state = (position, is_done, ending)
        if state == (self.position, self.is_done, self._ending):
            return
        value = {
            "run_id": self._run_id,
            "row": position.row,
            "state": position.state,
            "done": is_done,
            "ending": ending,
            "wall_s": round(time.time(), 3),
        }
        write_json(self.path, value)
        self.position, self.is_done, self._ending = state

    def close(self) -> None:
        """Let go of the lock. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Cursor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _read(path: Path, run_id: str) -> tuple[Position, bool, int]:
    value = read_json(path)
    if value is None:
        return START, False, 0
    if value.get("run_id") != run_id:
        raise ValueError(f"{path} belongs to run {value.get('run_id')}, not to {run_id}")
    try:
        position = Position(int(value["row"]), dict(value["state"]))
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"{path} is damaged: {exc!r}") from exc
    return position, bool(value.get("done")), int(value.get("ending", 0))
