"""Quarantine: where bytes go that nothing here will ever accept, for somebody to look at."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

FILES_MAX: Final = 1000


def keep(directory: Path, name: str, data: bytes) -> None:
    """Save bytes under a name, if there is room for one more file; never raises for the disk.

    A symbolic link in the place of the directory or of the file is not followed.
    """
    with contextlib.suppress(OSError):
        directory.mkdir(exist_ok=True)
        if directory.is_symlink() or sum(1 for _ in directory.iterdir()) >= FILES_MAX:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(directory / name, flags, 0o644)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
