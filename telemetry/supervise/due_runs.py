"""Due runs: the runs of a data directory that the supervisor has to look at now.

In: the directory of the runs, and which of them are open.
Out: names of runs; typed contents of their files, parsed again only when they change.
Never: looks at thousands of runs that are done four times a second. Those are looked at in
turn, a few each time; a run that is open is not among them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from shared.ids import RUN_ID
from telemetry.run_dir import read

SETTLED_EACH_TIME: Final = 8
RELISTED_EACH: Final = 20
"""The directory is listed again when its time has changed, and each so many times: two changes
may have one time."""

_T = TypeVar("_T", bound=msgspec.Struct)


class DueRuns:
    """The runs below one directory, parted into those that may have work and the settled."""

    def __init__(self, runs_dir: Path, open_runs: Callable[[], Iterable[str]] = lambda: ()) -> None:
        """Take the directory, which may not be there yet.

        open_runs: names the runs that ingest has open. May be called from any thread.
        """
        self._runs_dir = runs_dir
        self._open_runs = open_runs
        self._open: set[str] = set()
        self._at_work: set[str] = set()
        self._settled: deque[str] = deque()
        self._known: set[str] = set()
        self._version = -1
        self._until_listed = 0
        self._files: dict[str, dict[Path, tuple[tuple[int, int], msgspec.Struct]]] = {}

    def due(self, *, everything: bool = False) -> list[str]:
        """Return the names of the runs to look at now, in order."""
        # 1. New runs may have work; those that are gone are forgotten.
        self._relist()
        # 2. A run that is open again is not settled any more.
        self._open = set(self._open_runs()) & self._known
        if not self._open <= self._at_work:
            self._at_work |= self._open
            self._settled = deque(name for name in self._settled if name not in self._at_work)
        # 3. Of the settled, the next few: somebody may have removed a cursor.
        few = len(self._settled) if everything else min(SETTLED_EACH_TIME, len(self._settled))
        for _ in range(few):
            self._at_work.add(self._settled.popleft())
        return sorted(self._at_work)

    def settle(self, name: str) -> None:
        """Note that a run has nothing to do. One that is open is looked at again all the same."""
        if name in self._at_work and name not in self._open:
            self._at_work.discard(name)
            self._settled.append(name)

    def read(self, name: str, path: Path, kind: type[_T]) -> _T | None:
        """Return the fields of a JSON file of a run that matter here.

        A file that can't be read is as one that is not there, and is looked at again.
        """
        try:
            status = path.stat()
        except OSError:
            return None
        # With the inode: a file may be replaced twice within the resolution of its mtime.
        version = status.st_mtime_ns, status.st_ino
        files = self._files.setdefault(name, {})
        known = files.get(path)
        if known is not None and known[0] == version and isinstance(known[1], kind):
            return known[1]
        if (value := read(path, kind)) is not None:
            files[path] = version, value
        return value

    def _relist(self) -> None:
        try:
            version = self._runs_dir.stat().st_mtime_ns
        except OSError:
            version = -1
        self._until_listed -= 1
        if version == self._version and self._until_listed > 0:
            return
        self._version, self._until_listed = version, RELISTED_EACH
        # Other names, such as that of a repaired copy, are no runs of this sidecar.
        names = (path.name for path in self._runs_dir.iterdir()) if version >= 0 else ()
        found = set(filter(RUN_ID.fullmatch, names))
        self._at_work = (self._at_work & found) | (found - self._known)
        if not self._known <= found:
            self._settled = deque(name for name in self._settled if name in found)
            self._files = {name: files for name, files in self._files.items() if name in found}
        self._known = found
