"""Quarantine: where bytes go that nothing here will ever accept, for somebody to look at."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

FILES_MAX: Final = 1000


def keep(directory: Path, name: str, data: bytes) -> None:
    """Save bytes under a name, if there is room for one more file; never raises for the disk."""
    with contextlib.suppress(OSError):
        directory.mkdir(exist_ok=True)
        if sum(1 for _ in directory.iterdir()) < FILES_MAX:
            (directory / name).write_bytes(data)
