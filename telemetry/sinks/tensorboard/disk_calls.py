"""Disk calls of the TensorBoard files: whole writes, and durable directories.

In: paths and bytes.
Out: the same on disk.
Never: follows a symbolic link below a run's directory.

All calls go through `os`, so that a test can replace it by a disk that forgets
what was not synced.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

_log = logging.getLogger(__name__)


def write_fully(descriptor: int, data: bytes | bytearray) -> None:
    """Write all of data, in several calls if one writes only a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create a directory and its parents, with their names durable after a power cut."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir()
    sync_directory(path.parent)


def make_own_directory(path: Path) -> None:
    """Make a directory as make_directory does; a symbolic link in its place is removed."""
    if is_link(path):
        _log.warning("%s is a symbolic link: it is replaced by a directory", path)
        path.unlink()
    make_directory(path)


def is_link(path: Path) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
