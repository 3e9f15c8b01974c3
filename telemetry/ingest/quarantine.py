"""Quarantine: files that keep refused frames and events, for a person to look at."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

FILES_MAX: Final = 1000
BYTES_MAX: Final = 64 * 1024 * 1024
"""Bounds of one run's quarantine: refused bytes must not fill the disk."""


def keep(directory: Path, name: str, data: bytes) -> None:
    """Save bytes under a name, if there is room for one more file; never raises for the disk.

    A symbolic link in the place of the directory or of the file is not followed.
    """
    with contextlib.suppress(OSError):
        directory.mkdir(exist_ok=True)
        sizes = [path.lstat().st_size for path in directory.iterdir()]
        if directory.is_symlink() or len(sizes) >= FILES_MAX:
            return
        if sum(sizes) + len(data) > BYTES_MAX:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(directory / name, flags, 0o644)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
