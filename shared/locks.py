"""Locks: files and directories that one process at a time holds, by an exclusive flock.

In: an open file or directory.
Out: its lock, which goes with the descriptor, however its process ends.
Never: waits for a holder that lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

UNSUPPORTED: Final = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""Error numbers of flock on a file system that has no locks."""

ENDING_MAX_S: Final = 5.0
RETRY_S: Final = 0.01


class Locked(BlockingIOError):
    """Error: another process holds the lock."""


class LocksUnsupported(OSError):
    """Error: the file system has no locks, so another process may be at work there."""


def lock(fd: int) -> None:
    """Take the exclusive lock of an open file or directory; it goes with the descriptor.

    Raises:
        Locked: another process has it.
        LocksUnsupported: the file system has no locks.
        OSError: anything else.
    """
    _flock(fd, fcntl.LOCK_EX)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the exclusive lock of a directory that exists.

    Raises:
        Locked: another process has it.
        LocksUnsupported: the file system has no locks.
        OSError: there is no such directory, or it can't be opened.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock(fd)
        yield
    finally:
        os.close(fd)


def lock_unless_alive(fd: int, ending_max_s: float = ENDING_MAX_S) -> None:
    """Take the lock of a file in which its holder wrote its pid, unless that process lives.

    The pid may be that of a guard: when the guard is gone the kernel kills its service,
    which holds the lock for another moment. Only that moment is waited for.

    Raises:
        Locked: a process that lives holds it.
        LocksUnsupported: the file system has no locks.
        OSError: anything else.
    """
    deadline_s = time.monotonic() + ending_max_s
    while True:
        try:
            return lock(fd)
        except Locked:
            if not _is_gone(holder_pid(fd)) or time.monotonic() > deadline_s:
                raise
        time.sleep(RETRY_S)


def is_locked(path: Path) -> bool:
    """True if a process holds the exclusive lock of this file or directory.

    Raises:
        LocksUnsupported: the file system has no locks.
        OSError: this process has no descriptor left to ask with.
    """
    try:
        # Not blocking: a named pipe in its place would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return False
    try:
        # A shared lock: two processes that ask at once must not see each other as holders.
        _flock(fd, fcntl.LOCK_SH)
    except Locked:
        return True
    finally:
        os.close(fd)
    return False


def write_holder(fd: int, text: str) -> None:
    """Write into a locked file who holds it, in place of who held it before.

    The text begins with the pid, and is for people and for `holder_pid`.

    Raises:
        OSError: the disk is full or fails.
    """
    os.ftruncate(fd, 0)
    os.pwrite(fd, os.fsencode(text), 0)


def holder_pid(fd: int) -> int:
    """Return the pid that the last holder wrote into a lock file; 0 if there is none."""
    words = os.pread(fd, 32, 0).split()
    return int(words[0]) if words and words[0].isdigit() else 0


def _flock(fd: int, kind: int) -> None:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise Locked(exc.errno, exc.strerror) from exc
    except OSError as exc:
        if exc.errno in UNSUPPORTED:
            raise LocksUnsupported(exc.errno, exc.strerror) from exc
        raise


def _is_gone(pid: int) -> bool:
    """True if there is no such process, or only a zombie."""
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
