"""Room: the free space of the disk that the data directory is on.

In: the data directory, and the bytes that must stay free.
Out: True while there is room; a change of that is logged.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from telemetry.datadir import DataDir
from telemetry.journal.writer import JournalFault

log = logging.getLogger("telemetry.service")


class Room:
    """The room on one disk. Not thread-safe."""

    def __init__(self, data_dir: DataDir, path: Path, min_free_bytes: int) -> None:
        self._data_dir, self._path, self._min_free_bytes = data_dir, path, min_free_bytes
        self.free_bytes: int | None = None
        """Free room as of the last look; may be read from any thread."""
        self._has_room = True

    def look(self) -> bool:
        """Return True if as much of the disk is free as must be.

        Raises:
            JournalFault: the data directory is gone.
        """
        if not self._data_dir.is_there:
            # Writes would still succeed, into deleted files that nobody can open any more.
            raise JournalFault(f"the data directory {self._path} was removed or moved")
        free = shutil.disk_usage(self._path).free
        self.free_bytes = free
        has_room = free >= self._min_free_bytes
        if has_room != self._has_room:
            level = logging.INFO if has_room else logging.ERROR
            log.log(level, "%d MB free: %s", free >> 20, "going on" if has_room else "pausing")
        self._has_room = has_room
        return has_room
