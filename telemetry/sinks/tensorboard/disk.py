"""Disk calls that the TensorBoard files share: whole writes, and directories that last.

In: paths and bytes.
Out: the same on disk.
Never: follows a symbolic link below a run's directory.

All of it goes through `os`, so that a test can put a disk behind it that
forgets what was not synced.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

_log = logging.getLogger(__name__)


def write_fully(descriptor: int, data: bytes | bytearray) -> None:
    """Write all of data, however little the disk takes at a time."""
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
    """Create a directory and its parents, so that a power cut leaves none of them out."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir()
    sync_directory(path.parent)


def make_own_directory(path: Path) -> None:
    """As make_directory, where a symbolic link in its place is removed and not followed."""
    if is_link(path):
        _log.warning("%s is a symbolic link: it is replaced by a directory", path)
        path.unlink()
    make_directory(path)


def is_link(path: Path) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
