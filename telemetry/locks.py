"""Locks: takes a file lock at once, or as soon as a holder that is ending has ended.

In: an open lock file, in which the holder wrote its pid.
Out: the lock.
Never: waits for a holder that lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Final

ENDING_MAX_S: Final = 5.0
RETRY_S: Final = 0.01


def take_lock(fd: int) -> None:
    """Take the lock of this file.

    The pid in the file may be that of a guard: when the guard is gone the kernel kills its
    service, which holds the lock for another moment.

    Raises:
        BlockingIOError: a process that lives holds it.
        OSError: the file system has no locks.
    """
    deadline_s = time.monotonic() + ENDING_MAX_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not _is_gone(_pid_in(fd)) or time.monotonic() > deadline_s:
                raise
            time.sleep(RETRY_S)
        else:
            return


def _pid_in(fd: int) -> int:
    said = os.pread(fd, 32, 0).split()
    return int(said[0]) if said and said[0].isdigit() else 0


def _is_gone(pid: int) -> bool:
    """Return True if there is no such process, or only a zombie."""
    if not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
