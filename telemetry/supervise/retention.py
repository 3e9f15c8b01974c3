"""Retention: removes the oldest runs that have ended and that every sink has.

In: the directories of runs, and how many bytes they may take together.
Out: fewer directories, the oldest gone first; before that, the kept columns of runs.
Never: removes a part of a run, a run that goes on, one that an enabled sink
does not have all of yet, one with wandb files that are not uploaded, or one
whose files are too damaged to tell.

Runs on a thread of its own: removing gigabytes takes time.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from shared.files import bytes_on_disk
from shared.ids import RUN_ID
from shared.locks import Locked
from shared.record import CorruptRecord
from telemetry.journal.layout import Mark, read_mark
from telemetry.journal.readable import readable_end
from telemetry.run_dir import RunDir
from telemetry.supervise.removal import clear_leftovers, obstacle, remove_run
from telemetry.supervise.tombstones import Tombstone, read_tombstone

__all__ = ["Retention", "Tombstone", "read_tombstone"]

log = logging.getLogger("telemetry.supervise.retention")

SWEEP_S: Final = 60.0
REASON: Final = "removed by retention to make room; every enabled sink had all of it"


class Retention:
    """A sweep, on a thread of its own, that keeps runs under a number of bytes if it may."""

    def __init__(self, runs_dir: Path, sinks: tuple[str, ...], max_bytes: int) -> None:
        self._runs_dir = runs_dir
        self._sinks = sinks
        self._max_bytes = max_bytes
        self._told: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ask the thread to stop after the run it is removing. May be called twice."""
        self._stop.set()

    def sweep(self) -> list[str]:
        """Remove the oldest removable runs above the bound, and return their ids."""
        self.clear_leftovers()
        sizes = {path: bytes_on_disk(path) for path in self._run_dirs()}
        excess = sum(sizes.values()) - self._max_bytes
        removed: list[str] = []
        oldest_first = sorted(sizes, key=_ended_ns)
        # Kept columns go before any run does: they can be made again.
        for path in oldest_first:
            if excess <= 0:
                break
            freed = _remove_columns(path)
            sizes[path] -= freed
            excess -= freed
        for path in oldest_first:
            if excess <= 0 or self._stop.is_set():
                break
            if self._remove(path):
                log.info("run=%s removed to make room, %d MB", path.name, sizes[path] >> 20)
                removed.append(path.name)
                excess -= sizes[path]
        return removed

    def clear_leftovers(self) -> None:
        """Delete the rest of runs that a crash left renamed aside."""
        clear_leftovers(self._runs_dir)

    def _run(self) -> None:
        self._guarded(self.clear_leftovers)
        while self._max_bytes and not self._stop.wait(SWEEP_S):
            self._guarded(self.sweep)

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception:
            log.exception("retention failed; it goes on")

    def _remove(self, path: Path) -> bool:
        """Remove a run that may go and that ingest does not have open; return True if done."""
        # Look without the lock first: taking it would disturb ingest opening the run.
        end = _readable_end(path)
        if end is None or obstacle(path, self._sinks, end):
            return False

        def may_go() -> bool:
            return not obstacle(path, self._sinks, max(end, read_mark(RunDir(path).journal) or end))

        try:
            return remove_run(path, REASON, may_go)
        except Locked:
            return False  # ingest has it open
        except (OSError, CorruptRecord) as exc:
            self._tell(path.name, f"can't be removed: {exc}")
            return False

    def _tell(self, run_id: str, text: str) -> None:
        """Log once why a run could not be removed."""
        if self._told.get(run_id) != text:
            self._told[run_id] = text
            log.warning("run=%s %s", run_id, text)

    def _run_dirs(self) -> Iterator[Path]:
        for path in self._runs_dir.iterdir():
            if RUN_ID.fullmatch(path.name) and not path.is_symlink() and path.is_dir():
                yield path


def _readable_end(path: Path) -> Mark | None:
    """Return the end of a run's readable journal, None where it can't be read."""
    try:
        return readable_end(RunDir(path).journal)
    except OSError:
        return None


def _remove_columns(run_dir: Path) -> int:
    """Delete the kept columns of a run, and return how many bytes that frees."""
    columns = RunDir(run_dir).columns
    before = bytes_on_disk(columns)
    shutil.rmtree(columns, ignore_errors=True)
    return before - bytes_on_disk(columns)


def _ended_ns(path: Path) -> int:
    """Return the time a run ended, which is when its run.json was last written; 0 for none."""
    try:
        return RunDir(path).run_file.stat().st_mtime_ns
    except OSError:
        return 0
