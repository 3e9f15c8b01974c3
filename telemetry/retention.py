"""Retention: whole runs that have ended and are safe elsewhere make room for new ones.

In: the directories of runs, and how many bytes they may take together.
Out: fewer directories, the oldest gone first.
Never: removes a part of a run, a run that goes on, one that an enabled sink
does not have all of yet, or one with wandb files that nobody has uploaded.

Runs on a thread of its own: removing gigabytes takes time.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared.ids import RUN_ID
from telemetry.files import read_json
from telemetry.runs import RUN_FILE
from telemetry.summary import unsynced_wandb_runs

log = logging.getLogger("telemetry.retention")

SWEEP_S: Final = 60.0
REMOVING: Final = ".removing-"


class Retention:
    """Keeps the runs under a number of bytes, as far as it may."""

    def __init__(self, runs_dir: Path, sinks: tuple[str, ...], max_bytes: int) -> None:
        self._runs_dir = runs_dir
        self._sinks = sinks
        self._max_bytes = max_bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        if self._max_bytes:
            self._thread.start()

    def close(self) -> None:
        """Stop after the run that is being removed. May be called twice."""
        self._stop.set()

    def sweep(self) -> list[str]:
        """Remove what has to go and may; returns the ids of the runs removed."""
        for rest in self._runs_dir.glob(f"{REMOVING}*"):
            shutil.rmtree(rest, ignore_errors=True)
        sizes = {path: _size(path) for path in self._run_dirs()}
        excess = sum(sizes.values()) - self._max_bytes
        removed: list[str] = []
        for path in sorted(sizes, key=_ended_ns):
            if excess <= 0 or self._stop.is_set():
                break
            if self._may_go(path) and _remove(path):
                log.info("run=%s removed to make room, %d MB", path.name, sizes[path] >> 20)
                removed.append(path.name)
                excess -= sizes[path]
        return removed

    def _run(self) -> None:
        while not self._stop.wait(SWEEP_S):
            try:
                self.sweep()
            except Exception:
                log.exception("retention failed; it goes on")

    def _run_dirs(self) -> Iterator[Path]:
        for path in self._runs_dir.iterdir():
            if RUN_ID.fullmatch(path.name) and not path.is_symlink() and path.is_dir():
                yield path

    def _may_go(self, path: Path) -> bool:
        info = read_json(path / RUN_FILE)
        if info is None or info.get("state") != "ended" or unsynced_wandb_runs(path):
            return False
        for sink in self._sinks:
            if sink == "wandb" and info.get("wandb_mode") == "disabled":
                continue
            cursor = read_json(path / "cursors" / f"{sink}.json")
            if cursor is None or not cursor.get("done"):
                return False
        return True


def _remove(path: Path) -> bool:
    """Remove a run that nobody has open. Its name is gone at once, its bytes after."""
    try:
        fd = os.open(path / "journal", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # The writer's own lock: ingest can't open the journal while it goes.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        away = path.with_name(REMOVING + path.name)
        path.rename(away)
    except OSError:
        return False
    finally:
        os.close(fd)
    shutil.rmtree(away, ignore_errors=True)
    return True


def _size(path: Path) -> int:
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.lstat().st_blocks * 512
    return total


def _ended_ns(path: Path) -> int:
    """When a run was last heard of: its run.json is written when it ends."""
    try:
        return (path / RUN_FILE).stat().st_mtime_ns
    except OSError:
        return 0
