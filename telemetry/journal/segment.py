"""Segment: begins a file of a journal, durably, or leaves no trace of it.

In: the row that names the segment, and its header.
Out: the open file, behind its header.
Never: leaves a half-made segment where recovery would take it for one.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from shared.files import sync_directory, write_all
from telemetry.journal.layout import segment_path


class SegmentLeft(Exception):
    """Error: a segment that could not be begun can't be removed again."""


def begin_segment(directory: Path, first_row: int, header: bytes) -> int:
    """Make a segment durable under its name, and return its descriptor.

    Raises:
        OSError: it can't be made; nothing of it is left.
        SegmentLeft: it can't be made, and something of it may be left.
    """
    path = segment_path(directory, first_row)
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    # The header is on disk before the file gets its name, so that recovery never finds
    # a half-made segment. The descriptor stays open: for want of another one, a journal
    # could otherwise lose the segment that it has just made.
    making = path.with_suffix(".making")
    fd = os.open(making, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, header, 0)
        os.fdatasync(fd)
        making.rename(path)
        sync_directory(directory)
    except OSError:
        os.close(fd)
        _remove(directory, making, path)
        raise
    return fd


def _remove(directory: Path, *paths: Path) -> None:
    try:
        for path in paths:
            path.unlink(missing_ok=True)
        sync_directory(directory)
    except OSError as exc:
        raise SegmentLeft(f"{paths[-1]}: {exc.strerror}") from exc
