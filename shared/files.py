"""Files that survive a crash: written whole, durably named, locked against other processes.

In: bytes, or a function that writes them; paths and open descriptors.
Out: the old content or the new one after a crash, never something between.
Never: leaves a temporary file beside a target, or takes a lock that is held.

A name is durable only once its directory is synced: syncing a file makes its content
durable, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

NO_FLOCK: Final = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""Error numbers of flock on a file system that has no locks."""


class Locked(OSError):
    """Error: another process holds the lock."""


class LocksUnsupported(OSError):
    """Error: the file system has no locks, so another process may be at work there."""


def write_all(fd: int, data: bytes | bytearray | memoryview, at: int) -> None:
    """Write all of data at an offset, however many calls that takes.

    Raises:
        OSError: the disk is full or fails; any part of data may have been written.
    """
    view, written = memoryview(data), 0
    while written < len(view):
        written += os.pwrite(fd, view[written:], at + written)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(directory: Path) -> None:
    """Make a directory with its parents, each name of it durable.

    Raises:
        OSError: it can't be made.
    """
    missing = [path for path in (directory, *directory.parents) if not path.is_dir()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_directory(path.parent)


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
            _sync_file(file)
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


def lock(fd: int) -> None:
    """Take the exclusive lock of an open file or directory; it goes with the descriptor.

    Raises:
        Locked: another process has it.
        LocksUnsupported: the file system has no locks.
        OSError: anything else.
    """
    _flock(fd, fcntl.LOCK_EX)


def is_locked(path: Path) -> bool:
    """True if a process holds the exclusive lock of this file or directory.

    Raises:
        LocksUnsupported: the file system has no locks.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # A shared lock: two processes that ask at once must not see each other as holders.
        _flock(fd, fcntl.LOCK_SH)
    except Locked:
        return True
    finally:
        os.close(fd)
    return False


def _flock(fd: int, kind: int) -> None:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise Locked(exc.errno, "somebody else holds its lock") from exc
    except OSError as exc:
        if exc.errno in NO_FLOCK:
            raise LocksUnsupported(exc.errno, "this file system has no locks (flock)") from exc
        raise


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
