"""Retention: removes the oldest runs that have ended and that every sink has.

In: the directories of runs, and how many bytes they may take together.
Out: fewer directories, the oldest gone first.
Never: removes a part of a run, a run that goes on, one that an enabled sink
does not have all of yet, one with wandb files that are not uploaded, or one
whose files are too damaged to tell.

    tombstone written -> renamed aside, under no run's name -> its bytes go

Each step is on disk before the next begins. A crash between the first two leaves
the run as it was; after a crash behind the second the next start deletes the rest.

Runs on a thread of its own: removing gigabytes takes time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from shared.files import sync_directory
from shared.ids import RUN_ID
from shared.locks import Locked, lock
from shared.record import CorruptRecord
from telemetry.journal.layout import Mark, read_mark
from telemetry.journal.readable import readable_end
from telemetry.run_dir import CursorState, RunDir, RunState, read, sink_is_done
from telemetry.summary import unsynced_wandb_runs
from telemetry.supervise.tombstones import Tombstone, read_tombstone, write_tombstone

__all__ = ["Retention", "Tombstone", "read_tombstone"]

log = logging.getLogger("telemetry.supervise.retention")

SWEEP_S: Final = 60.0
REMOVING: Final = ".removing-"
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
        sizes = {path: _size(path) for path in self._run_dirs()}
        excess = sum(sizes.values()) - self._max_bytes
        removed: list[str] = []
        for path in sorted(sizes, key=_ended_ns):
            if excess <= 0 or self._stop.is_set():
                break
            if self._remove(path):
                log.info("run=%s removed to make room, %d MB", path.name, sizes[path] >> 20)
                removed.append(path.name)
                excess -= sizes[path]
        return removed

    def clear_leftovers(self) -> None:
        """Delete the rest of runs that a crash left renamed aside."""
        for rest in self._runs_dir.glob(f"{REMOVING}*"):
            shutil.rmtree(rest, ignore_errors=True)

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
        # 1. Look without the lock: taking it would disturb ingest opening the run.
        end = _readable_end(path)
        if end is None or not self._may_go(path, end):
            return False
        try:
            journal = RunDir(path).journal
            with _locked(journal):
                # 2. Look again under the lock: it may have been continued and closed meanwhile.
                if not self._may_go(path, max(end, read_mark(journal) or end)):
                    return False
                # 3. Tombstone first: late events of the run must not begin a new journal.
                write_tombstone(self._runs_dir, path.name, REASON)
                away = path.with_name(f"{REMOVING}{path.name}.{time.time_ns()}")
                path.rename(away)
                # 4. Sync the rename before a byte is deleted: a power cut must not bring back
                #    half a run.
                sync_directory(self._runs_dir)
        except Locked:
            return False  # ingest has it open
        except (OSError, CorruptRecord) as exc:
            self._tell(path.name, f"can't be removed: {exc}")
            return False
        # 5. Delete, without the lock: gigabytes take time.
        shutil.rmtree(away, ignore_errors=True)
        return True

    def _tell(self, run_id: str, text: str) -> None:
        """Log once why a run could not be removed."""
        if self._told.get(run_id) != text:
            self._told[run_id] = text
            log.warning("run=%s %s", run_id, text)

    def _run_dirs(self) -> Iterator[Path]:
        for path in self._runs_dir.iterdir():
            if RUN_ID.fullmatch(path.name) and not path.is_symlink() and path.is_dir():
                yield path

    def _may_go(self, path: Path, end: Mark) -> bool:
        place = RunDir(path)
        run = read(place.run_file, RunState)
        if run is None or not _is_over(path, run, end) or unsynced_wandb_runs(path):
            return False
        return all(
            sink_is_done(read(place.cursor(sink), CursorState), run)
            for sink in self._sinks
            if run.wants(sink)
        )


def _is_over(path: Path, run: RunState, end: Mark) -> bool:
    """Return True if a run has ended, and nothing was journaled behind its end."""
    if not run.is_ended or run.run_id not in ("", path.name):
        return False
    # A run with rows behind its end goes on at the next start, and ends once more.
    return end.next_row == run.as_of_row


def _readable_end(path: Path) -> Mark | None:
    """Return the end of a run's readable journal, None where it can't be read."""
    try:
        return readable_end(RunDir(path).journal)
    except OSError:
        return None


@contextlib.contextmanager
def _locked(journal: Path) -> Iterator[None]:
    """Hold the writer's own lock: ingest can't open the journal meanwhile.

    Raises:
        Locked: another process holds it.
        OSError: there is no such directory, or it can't be locked.
    """
    fd = os.open(journal, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock(fd)
        yield
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    """Return the bytes that a run takes on disk, without files that vanish meanwhile."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(directory) / name).lstat().st_blocks * 512
    return total


def _ended_ns(path: Path) -> int:
    """Return the time a run ended, which is when its run.json was last written; 0 for none."""
    try:
        return RunDir(path).run_file.stat().st_mtime_ns
    except OSError:
        return 0
