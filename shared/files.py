"""Files that survive a crash: written whole, and durably named.

In: bytes, or a function that writes them; paths and open descriptors.
Out: the old content or the new one after a crash, never something between.
Never: leaves a temporary file beside a target. (Locks are in shared/locks.py.)

A name is durable only once its directory is synced: syncing a file makes its content
durable, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_all(fd: int, data: bytes | bytearray | memoryview, at: int) -> None:
    """Write all of data at an offset, however many calls that takes.

    Raises:
        OSError: the disk is full or fails; any part of data may have been written.
    """
    view, written = memoryview(data), 0
    while written < len(view):
        written += os.pwrite(fd, view[written:], at + written)


def append_whole(fd: int, data: bytes | bytearray | memoryview, size: int) -> None:
    """Write data behind the first size bytes of a file, in place of what is there.

    Raises:
        OSError: the disk is full or fails; the file is cut to size again, if that is possible.
    """
    try:
        write_all(fd, data, size)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, size)
        raise


def cut(fd: int, size: int) -> None:
    """Cut an open file to a size, durably.

    Raises:
        OSError: the disk fails.
    """
    os.ftruncate(fd, size)
    os.fsync(fd)


def sync_file(path: Path) -> None:
    """Make the content of a file durable.

    Raises:
        OSError: it is not there, or the disk fails.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def bytes_on_disk(directory: Path) -> int:
    """Return the bytes that a directory takes on disk, without files that vanish meanwhile."""
    total, left = 0, [os.fspath(directory)]
    while left:
        with contextlib.suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                else:
                    with contextlib.suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def make_directory(directory: Path) -> None:
    """Make a directory with its parents, each name of it durable.

    The name of a directory that is there already is synced as well: the process that made
    it may have been killed before its sync.

    Raises:
        OSError: it can't be made.
    """
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
    # A parent that this user can't open was there before, and needs no sync.
    with contextlib.suppress(PermissionError):
        sync_directory(directory.parent)


def write_atomically(path: Path, write: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file beside its target, sync it, rename it over the target, sync the directory.

    One process at a time writes a target.

    Raises:
        OSError: the target is as it was before; what was written beside it is gone.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_directory(path.parent)


def write_directory_atomically(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a directory beside its target, sync all of it, rename it to the target.

    A directory can't be renamed over one with files in it: an older one of this name is
    moved aside first, and is gone once the new one stands.

    Raises:
        OSError: the target is as it was before; what was written beside it is gone.
    """
    beside, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        beside.mkdir()
        fill(beside)
        for file in beside.iterdir():
            sync_file(file)
        sync_directory(beside)
        if path.exists():
            path.rename(old)
        beside.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    sync_directory(path.parent)
