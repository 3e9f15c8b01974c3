"""Runs: the open runs of a data directory, and those that a former sidecar left unfinished.

In: run ids, from HELLOs and from the names of directories.
Out: open runs, each with its journal.
Never: opens a run whose directory leads elsewhere by a symbolic link.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from shared.clock import Clock
from shared.files import make_directory
from shared.ids import check_run_id
from telemetry.ingest.run import Run
from telemetry.journal.readable import readable_end
from telemetry.journal.writer import JournalWriter
from telemetry.run_dir import RunDir, RunState, read, runs_of
from telemetry.supervise.tombstones import Tombstone, read_tombstone
from telemetry.watch.feed import Feed

log = logging.getLogger("telemetry.ingest.runs")


class Runs:
    """All runs under one data directory, opened as they are needed."""

    def __init__(
        self,
        data_dir: Path,
        session: str,
        clock: Clock,
        feed: Feed | None = None,
        open_journal: Callable[[Path], JournalWriter] = JournalWriter,
    ) -> None:
        self.directory = runs_of(data_dir)
        self._data_dir = data_dir
        self._session = session
        self._clock = clock
        self._open_journal = open_journal
        self._feed = feed
        self.unsynced: set[str] = set()
        """Ids of the open runs whose journals have rows that are not on disk."""
        self._open: dict[str, Run] = {}
        self._told_of: set[str] = set()
        self._unfinished: deque[Path] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def has(self, run_id: str) -> bool:
        """Return True if there is a run of this id, open or not."""
        return run_id in self._open or (self.directory / run_id).exists()

    def tombstone(self, run_id: str) -> Tombstone | None:
        """Return the tombstone of a removed run of this id, or None."""
        return read_tombstone(self._data_dir, run_id)

    def open(self, run_id: str) -> Run:
        """Return the run of this id, created if it is new.

        Raises:
            ValueError: not a run id, or its directory has a symbolic link in it.
            OSError, JournalLocked, JournalFull: its directory can't be used.
        """
        run = self._open.get(run_id)
        if run is None:
            directory = self.directory / check_run_id(run_id)
            _refuse_links(directory)
            make_directory(directory)
            run = self._open[run_id] = Run(
                RunDir(directory), run_id, self._session, self._clock, self.unsynced,
                self._open_journal, self._feed,
            )  # fmt: skip
        return run

    def note_unfinished(self) -> None:
        """Find the runs that a former sidecar left; `open_noted` opens them."""
        if self.directory.is_dir():
            self._unfinished = deque(sorted(self.directory.iterdir()))

    def open_noted(self, count: int) -> bool:
        """Open some of the runs found at the start; return True if more are left."""
        while self._unfinished and count > 0:
            count -= 1
            directory = self._unfinished.popleft()
            # Any exception, whatever its files hold: one bad run must not stop the others.
            try:
                if RunDir(directory).journal.is_dir() and not _is_over(directory):
                    self.open(directory.name)
            except Exception as exc:
                log.error("run=%s can't be opened: %s", directory.name, exc)
        return bool(self._unfinished)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._open.values()))

    def open_ids(self) -> list[str]:
        """Return the ids of the runs that are open now. May be called from any thread."""
        return list(self._open)

    def active(self, but: str) -> list[Run]:
        """Return the runs that have a name and have not ended, without the one of id `but`."""
        return [run for run in self if run.is_started and not run.is_ended and run.run_id != but]

    @property
    def told_of(self) -> set[str]:
        """Ids of all runs that had a name while open here, including those closed since."""
        return self._told_of | {run.run_id for run in self if run.is_started}

    def get(self, run_id: str) -> Run | None:
        return self._open.get(run_id)

    def release(self, run: Run) -> None:
        """Close a run. `open` opens it again."""
        if run.is_started:
            self._told_of.add(run.run_id)
        run.close()
        self._open.pop(run.run_id, None)
        self.unsynced.discard(run.run_id)

    def discard(self, run: Run) -> None:
        """Close a run that never got a row, and take its empty directory away."""
        self.release(run)
        place = run.place
        with contextlib.suppress(OSError):
            for path in (place.run_file, *place.journal.iterdir()):
                path.unlink(missing_ok=True)
            place.journal.rmdir()
            place.path.rmdir()

    def close(self) -> None:
        for run in self:
            self.release(run)


def _refuse_links(directory: Path) -> None:
    """Refuse a run whose directory has a symbolic link in it.

    Segments, run.json or quarantined bytes would be written where the link leads.

    Raises:
        ValueError: it names the link.
    """
    if directory.is_symlink():
        raise ValueError(f"the directory of run {directory.name} is a symbolic link")
    place = RunDir(directory)
    for checked in (directory, place.journal, place.quarantine, place.cursors):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in checked.iterdir():
                if path.is_symlink():
                    shown = path.relative_to(directory.parent)
                    raise ValueError(
                        f"{shown} is a symbolic link: run {directory.name} is not used"
                    )


def _is_over(directory: Path) -> bool:
    """True if a run has ended, and has no rows behind its end."""
    place = RunDir(directory)
    # The journal is read, not only its durable mark: after a power cut the mark may be older
    # than the rows that were acknowledged.
    end, run = readable_end(place.journal), read(place.run_file, RunState)
    if run is None or run.run_id != directory.name or not run.is_ended:
        return False
    return end is None or end.next_row <= run.as_of_row
