"""The data directory: made, checked and held by one sidecar at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from telemetry.errors import EXIT_RUNNING, CommandError

LOCK_NAME: Final = "sidecar.lock"


class DataDir:
    """A lock on a data directory."""

    def __init__(self, path: Path) -> None:
        """Take hold of the directory.

        Raises:
            CommandError: it can't be made or written, or another sidecar has it.
        """
        try:
            (path / "runs").mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
            raise CommandError(
                f"data directory {path} can't be written: {getattr(exc, 'strerror', exc)}; "
                "choose another with --data-dir"
            ) from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._fd)
            raise CommandError(
                f"data directory {path} is in use by the sidecar with pid {holder_of(path)[0]}",
                EXIT_RUNNING,
            ) from exc
        os.ftruncate(self._fd, 0)
        self.publish("")

    def publish(self, address: str) -> None:
        """Say who holds the directory, and where it listens."""
        os.pwrite(self._fd, f"{os.getpid()} {address}\n".encode(), 0)

    def close(self) -> None:
        """Let go. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def holder_of(path: Path) -> tuple[str, str]:
    """Pid and address of the sidecar that holds a data directory, as it wrote them."""
    try:
        pid, _, address = (path / LOCK_NAME).read_text(errors="replace").strip().partition(" ")
    except OSError:
        return "unknown", ""
    return pid or "unknown", address


def is_held(path: Path) -> bool:
    """A sidecar is at work there."""
    try:
        fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared: two who ask at once must not hold it for one another.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
