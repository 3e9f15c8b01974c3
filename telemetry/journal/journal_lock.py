"""Journal lock: the lock that a journal's one writer holds, on the journal's directory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from shared.locks import Locked, lock

LOCK_TRIES: Final = 5
"""A reader that checks for a writer holds the lock for a moment, so one try is not enough."""
LOCK_RETRY_S: Final = 0.01


class JournalLocked(Exception):
    """Error: another process writes this journal."""


def lock_journal(directory: Path) -> int:
    """Lock the directory of a journal, and return its descriptor.

    Raises:
        JournalLocked: another process writes the journal.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd, directory)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, directory: Path) -> None:
    """Take the lock, at the last try at the latest; a reader lets it go at once."""
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            lock(fd)
            return
        except Locked as exc:
            if not tries_left:
                raise JournalLocked(f"{directory} is being written by another process") from exc
        time.sleep(LOCK_RETRY_S)
