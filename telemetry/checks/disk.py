"""Disk: the data directory, its room, its locks, and the time that a sync takes.

In: the data directory of the configuration.
Out: findings.
Never: leaves a file behind, or touches one that it did not make.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from telemetry.checks.check import DOUBTFUL, FAILS, WORKS, Finding
from telemetry.datadir import is_held

PART: Final = "disk"
SYNCS: Final = 20
SYNC_BYTES: Final = 4096
SLOW_SYNC_S: Final = 0.05
"""A median above this delays acknowledgements beyond one group commit."""
NETWORK_TYPES: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs"})
MEMORY_TYPES: Final = frozenset({"tmpfs", "ramfs"})


def look_at_disk(data_dir: Path, min_free_bytes: int) -> Iterator[Finding]:
    """Yield findings on the data directory, or on the directory that it would be made in."""
    place = nearest_existing(data_dir)
    shown = str(data_dir) if place == data_dir else f"{data_dir} (to be made in {place})"
    if not place.is_dir():
        advice = "choose another with --data-dir"
        yield Finding(PART, FAILS, f"{shown}: there is a file in its place", advice)
        return
    try:
        times_s = sync_times_s(place)
    except OSError as exc:
        text = f"{shown} can't be written: {exc.strerror or exc}"
        yield Finding(PART, FAILS, text, "choose another with --data-dir, or free some room")
        return
    yield _speed(shown, times_s)
    yield from _room(place, min_free_bytes)
    yield from _kind(place)


def nearest_existing(path: Path) -> Path:
    """Return the path itself, or the nearest of its parents that exists."""
    for place in (path, *path.parents):
        if place.exists():
            return place
    return path


def sync_times_s(directory: Path) -> list[float]:
    """Write and sync a file of our own several times; return the time of each sync in s.

    Raises:
        OSError: it can't be written, locked or synced.
    """
    times_s = []
    # Without a name where the file system can do so: nothing is left behind by a kill.
    with tempfile.TemporaryFile(dir=directory, prefix=".telemetry-doctor-") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        for _ in range(SYNCS):
            os.write(file.fileno(), bytes(SYNC_BYTES))
            began_s = time.perf_counter()
            os.fdatasync(file.fileno())
            times_s.append(time.perf_counter() - began_s)
    return times_s


def _speed(shown: str, times_s: list[float]) -> Finding:
    median_s = statistics.median(times_s)
    text = (
        f"{shown} can be written and locked; a sync of 4 kB takes {median_s * 1e3:.1f} ms, "
        f"the slowest of {len(times_s)} took {max(times_s) * 1e3:.1f} ms"
    )
    if median_s <= SLOW_SYNC_S:
        return Finding(PART, WORKS, text)
    advice = "training does not wait for it, but acknowledgements do: a local disk is better"
    return Finding(PART, DOUBTFUL, text, advice)


def _room(place: Path, min_free_bytes: int) -> Iterator[Finding]:
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:.1f} GB free; below {min_free_bytes / 1e9:.2f} GB recording pauses"
    if free < min_free_bytes:
        yield Finding(PART, FAILS, text, "free some room, or lower --min-free-bytes")
    elif free < 4 * min_free_bytes:
        yield Finding(PART, DOUBTFUL, text, "free some room soon; see --retain-bytes")
    else:
        yield Finding(PART, WORKS, text)


def _kind(place: Path) -> Iterator[Finding]:
    kind = file_system_of(place)
    if kind in NETWORK_TYPES:
        text = f"the file system is {kind}: syncs and locks depend on the network"
        yield Finding(PART, DOUBTFUL, text, "keep --data-dir on a local disk")
    elif kind in MEMORY_TYPES:
        text = f"the file system is {kind}: all of it is gone when the machine restarts"
        yield Finding(PART, DOUBTFUL, text, "keep --data-dir on a disk")


def file_system_of(place: Path) -> str:
    """Return the type of the file system of a path, or "" where it is unknown."""
    real = place.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[path] for path in (real, *real.parents) if path in mounts), "")


def look_at_spools(spool_dirs: tuple[str, ...], data_dir: Path) -> Iterator[Finding]:
    """Yield findings on the directories in which trainers leave what could not be sent."""
    for directory in dict.fromkeys([*map(Path, spool_dirs), data_dir / "spool"]):
        found = _spools_in(directory)
        if isinstance(found, OSError):
            is_wanted = str(directory) in spool_dirs
            if is_wanted and not isinstance(found, FileNotFoundError):
                text = f"{directory} can't be read: {found.strerror}"
                yield Finding("spool", FAILS, text, "let this user read it")
        elif found:
            text = f"{directory} has {len(found)} spools, {sum(found) / 1e6:.1f} MB"
            advice = "" if is_held(data_dir) else "a sidecar takes them in: telemetry serve"
            yield Finding("spool", WORKS, text, advice)


def _spools_in(directory: Path) -> list[int] | OSError:
    """Return the sizes of the spools in a directory in bytes, or why they are unknown."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - raises where there is no directory
        paths = [directory / name for name in names if name.endswith(".spool")]
        return [path.stat().st_size for path in paths]
    except OSError as exc:
        return exc
