"""The data directory: created, checked, and locked by one sidecar at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from shared.files import make_directory, write_all
from shared.locks import is_locked, lock_unless_alive, write_holder
from telemetry.errors import EXIT_RUNNING, CommandError
from telemetry.run_dir import RunDir, runs_of

LOCK_NAME: Final = "sidecar.lock"


def check_run_dir(path: Path) -> None:
    """Check that a path is the directory of a recorded run.

    Raises:
        CommandError: it is not; the message says what is there instead.
    """
    try:
        if not path.exists():
            raise CommandError(f"there is no {path}")
        if not path.is_dir():
            raise CommandError(f"{path} is a file; give the directory of a run, DATA_DIR/runs/RUN")
        if RunDir(path).journal.is_dir():
            return
        runs = sorted(path.glob("runs/*/journal")) or sorted(path.glob("*/journal"))
    except (OSError, ValueError) as exc:
        raise CommandError(f"{path} can't be read: {getattr(exc, 'strerror', exc)}") from exc
    if runs:
        raise CommandError(
            f"{path} holds several runs; give one of them, such as {runs[-1].parent}"
        )
    raise CommandError(f"{path} is not a recorded run: it has no journal/")


class DataDir:
    """A lock on a data directory."""

    def __init__(self, path: Path, pid: int | None = None) -> None:
        """Create and lock the directory. pid: the process that a user sees, if not this one.

        Raises:
            CommandError: it can't be made or written, or another sidecar has it.
        """
        self._path = path
        self._pid = pid or os.getpid()
        try:
            make_directory(path)
            make_directory(runs_of(path))
            self._fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
            why = getattr(exc, "strerror", exc)
            if isinstance(exc, FileExistsError | NotADirectoryError):
                why = "there is a file in its place"
            raise CommandError(
                f"data directory {path} can't be written: {why}; choose another with --data-dir"
            ) from exc
        try:
            lock_unless_alive(self._fd)
        except BlockingIOError as exc:
            os.close(self._fd)
            raise CommandError(
                f"data directory {path} is in use by the sidecar with pid {holder_of(path)[0]}",
                EXIT_RUNNING,
            ) from exc
        except OSError as exc:
            os.close(self._fd)
            raise CommandError(
                f"data directory {path} is on a file system that can't lock files "
                f"({exc.strerror}); choose one on a local disk with --data-dir"
            ) from exc
        write_holder(self._fd, f"{self._pid} \n")

    @property
    def is_there(self) -> bool:
        """True while the path still leads to the directory that is locked."""
        try:
            found, held = (self._path / LOCK_NAME).stat(), os.fstat(self._fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def publish(self, address: str) -> None:
        """Write the pid and the address of this sidecar into the lock file."""
        write_all(self._fd, os.fsencode(f"{self._pid} {address}\n"), 0)

    def close(self) -> None:
        """Release the lock. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def holder_of(path: Path) -> tuple[str, str]:
    """Return pid and address of the sidecar that holds a data directory, as it wrote them."""
    try:
        pid, _, address = os.fsdecode((path / LOCK_NAME).read_bytes()).strip().partition(" ")
    except OSError:
        return "unknown", ""
    return pid or "unknown", address


def was_used(path: Path) -> bool:
    """Return True if a sidecar has ever held this directory."""
    try:
        return (path / LOCK_NAME).is_file()
    except (OSError, ValueError):
        return False


def is_held(path: Path) -> bool:
    """Return True if a sidecar holds the lock of this directory."""
    try:
        return is_locked(path / LOCK_NAME)
    except (OSError, ValueError):
        return False
