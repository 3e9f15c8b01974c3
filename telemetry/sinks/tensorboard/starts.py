"""Starts: a unique, rising number for each process of the sink that writes files.

Out: a number above that of every earlier process.
Never: gives a number before it is on disk, or counts a process that writes nothing.
"""

from __future__ import annotations

from pathlib import Path

from shared.files import make_directory
from telemetry.json_files import read_json, write_json
from telemetry.run_dir import RunDir


class Starts:
    """Counter of the processes of one sink of one run, in out_dir/cursors. Not thread-safe."""

    def __init__(self, out_dir: Path) -> None:
        self._path = RunDir(out_dir).cursors / "tensorboard.starts"
        self._least = 0
        self._number: int | None = None

    def begin(self, least: int) -> None:
        """Start over: the next number is above least and above all numbers counted before."""
        self._least, self._number = least, None

    def number(self) -> int:
        """Return the number of this process; the first call counts and syncs it.

        Raises:
            OSError: as from the disk; nothing was counted.
        """
        if self._number is None:
            counted = (read_json(self._path) or {}).get("starts", 0)
            known = counted if isinstance(counted, int) else 0
            make_directory(self._path.parent)
            number = max(known, self._least, 0) + 1
            write_json(self._path, {"starts": number})
            self._number = number
        return self._number
