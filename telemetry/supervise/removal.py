"""Removal: takes one run away as a whole, and leaves its tombstone.

In: the directory of a run that may go.
Out: a tombstone, and no directory.
Never: removes a part of a run, or one whose journal a process has open.

    tombstone written -> renamed aside, under no run's name -> its bytes go

Each step is on disk before the next begins. A crash between the first two leaves
the run as it was; after a crash behind the second, `clear_leftovers` deletes the rest.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from shared.files import sync_directory
from shared.locks import locked
from telemetry.journal.layout import Mark
from telemetry.run_dir import CursorState, RunDir, RunState, read, sink_is_done
from telemetry.summary import unsynced_wandb_runs
from telemetry.supervise.tombstones import write_tombstone

REMOVING: Final = ".removing-"


def obstacle(path: Path, sinks: Iterable[str], end: Mark) -> str:
    """Return why a run may not be removed, in words; empty if it may.

    sinks: those that are to have all of it. end: of its readable journal.
    """
    place = RunDir(path)
    run = read(place.run_file, RunState)
    if run is None:
        return "its run.json can't be read"
    if not _is_over(path, run, end):
        return "it has not ended"
    if waiting := unsynced_wandb_runs(path):
        return f"{waiting[0]} is not uploaded yet"
    for sink in sinks:
        if run.wants(sink) and not sink_is_done(read(place.cursor(sink), CursorState), run):
            return f"sink {sink} does not have all of it yet"
    return ""


def remove_run(path: Path, reason: str, may_go: Callable[[], bool]) -> bool:
    """Remove a run that no process has open; return False if it may not go after all.

    may_go: asked once nobody can continue the run any more.

    Raises:
        Locked: ingest has the journal open.
        CorruptRecord: its journal does not tell which it is, so there can be no tombstone.
        OSError: the disk fails; the run is as it was.
    """
    runs_dir = path.parent
    # The writer's own lock: ingest can't open the journal meanwhile.
    with locked(RunDir(path).journal):
        # 1. Look again under the lock: it may have been continued and closed meanwhile.
        if not may_go():
            return False
        # 2. Tombstone first: late events of the run must not begin a new journal.
        write_tombstone(runs_dir, path.name, reason)
        away = path.with_name(f"{REMOVING}{path.name}.{time.time_ns()}")
        path.rename(away)
        # 3. Sync the rename before a byte is deleted: a power cut must not bring back
        #    half a run.
        sync_directory(runs_dir)
    # 4. Delete, without the lock: gigabytes take time.
    shutil.rmtree(away, ignore_errors=True)
    return True


def clear_leftovers(runs_dir: Path) -> None:
    """Delete the rest of runs that a crash left renamed aside."""
    for rest in runs_dir.glob(f"{REMOVING}*"):
        shutil.rmtree(rest, ignore_errors=True)


def _is_over(path: Path, run: RunState, end: Mark) -> bool:
    """Return True if a run has ended, and nothing was journaled behind its end."""
    if not run.is_ended or run.run_id not in ("", path.name):
        return False
    # A run with rows behind its end goes on at the next start, and ends once more.
    return end.next_row == run.as_of_row
