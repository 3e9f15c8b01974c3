"""Claims: names in a spool directory, each held by one live emitter at a time.

In: a directory and a name.
Out: a lock on the name, or the pid of the process that holds it.
Never: keeps an emitter from recording. Without its claim it only gets another name, or logs.

A claim is a flock on `<name>.lock`, released by the kernel when its process ends,
however it ends.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from shared.locks import Locked, holder_pid, is_locked, lock, write_holder

SUFFIX: Final = ".lock"
WORKERS_MAX: Final = 1000


class ClaimTaken(Exception):
    """Error: another process holds the name; pid is its process id, or "unknown"."""

    def __init__(self, pid: str) -> None:
        super().__init__(f"held by process {pid}")
        self.pid = pid


class Claim:
    """A name that is held until release. Not thread-safe: the sender thread owns it."""

    def __init__(self, directory: Path, name: str) -> None:
        """Take the name.

        Raises:
            ClaimTaken: another emitter has it.
            OSError: the directory can't be made or written, or has no locks.
        """
        self._path = directory / (name + SUFFIX)
        directory.mkdir(parents=True, exist_ok=True)
        self._fd = _locked(self._path)

    def release(self) -> None:
        """Release the name. May be called twice."""
        if self._fd < 0:
            return
        # Unlinked while still locked: the next process that opens the path makes a new file.
        with contextlib.suppress(OSError):
            self._path.unlink()
        self.abandon()

    def abandon(self) -> None:
        """Close this process's copy of the lock in a forked child; its parent still holds it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def holder(directory: Path, name: str) -> str:
    """Return the pid of the process that holds a name; empty if none is known to hold it."""
    path = directory / (name + SUFFIX)
    with contextlib.suppress(OSError):
        if is_locked(path):
            with path.open("rb") as file:
                return str(holder_pid(file.fileno()) or "")
    return ""


def claim_worker(
    directory: Path, run_id: str, source: str, most: int = WORKERS_MAX
) -> tuple[int, Claim]:
    """Claim the lowest worker number that is free, below most.

    Raises:
        OSError: the directory has no locks, or every number is held.
    """
    for number in range(most):
        with contextlib.suppress(ClaimTaken):
            return number, Claim(directory, f"{run_id}.{source}.worker{number}")
    raise OSError(0, f"{most} workers at once")


def _locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            lock(fd)
            # Between open and lock its holder may have released and unlinked it.
            if os.fstat(fd).st_nlink:
                write_holder(fd, str(os.getpid()))
                return fd
            os.close(fd)
        except Locked as exc:
            pid = holder_pid(fd)
            os.close(fd)
            raise ClaimTaken(str(pid or "unknown")) from exc
        except OSError:
            os.close(fd)
            raise
