"""Open runs: the columns of the runs that browsers look at, kept in memory within a bound.

In: ids of runs of one data directory.
Out: their columns, brought up to date at most once a second.
Never: keeps more than RUNS_MAX runs or ROWS_MAX rows beside the newest one; lets a request wait
longer than WAIT_S for a journal that is read for the first time.

Thread-safe: one thread at a time uses the columns of a run.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotReadyYet
from pathlib import Path
from typing import Final

from telemetry.errors import CommandError
from telemetry.page.problems import NotFound, StillReading
from telemetry.run_dir import runs_of
from telemetry.views.columns import RunColumns, keep_columns

log = logging.getLogger("telemetry.page")

RUNS_MAX: Final = 24
ROWS_MAX: Final = 4_000_000
READERS: Final = 2
WAIT_S: Final = 1.0
UPDATE_S: Final = 1.0


class _Open:
    """A run that is open, or being opened. Its lock belongs to whoever uses its columns."""

    def __init__(self, columns: Future[RunColumns]) -> None:
        self.columns = columns
        self.lock = threading.Lock()
        self.updated_s = time.monotonic()

    @property
    def rows(self) -> int:
        is_open = self.columns.done() and self.columns.exception() is None
        return self.columns.result().rows if is_open else 0

    def close(self) -> None:
        """Close the journal of the run, once it was read and nobody uses its columns."""
        if self.columns.exception() is None:
            with self.lock:
                self.columns.result().close()


class OpenRuns:
    """The runs of a data directory that are open. Thread-safe."""

    def __init__(
        self,
        data_dir: Path,
        read: Callable[[Path], RunColumns] = keep_columns,
        runs_max: int = RUNS_MAX,
    ) -> None:
        """Open no run yet. read: reads the columns of a run's directory."""
        self._data_dir, self._read, self._runs_max = data_dir, read, runs_max
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._readers = ThreadPoolExecutor(READERS, "read")

    @contextlib.contextmanager
    def columns(self, run_id: str) -> Iterator[RunColumns]:
        """Hold the columns of a run, up to date.

        Raises:
            NotFound: there is no such run, or it can't be read; the message says why.
            StillReading: its journal is being read for the first time; ask again.
        """
        entry = self._entry(run_id)
        try:
            columns = entry.columns.result(WAIT_S)
        except NotReadyYet as exc:
            raise StillReading("the journal is being read") from exc
        except CommandError as exc:
            self._forget(run_id, entry)
            raise NotFound(str(exc)) from exc
        except OSError as exc:
            self._forget(run_id, entry)
            raise NotFound(f"run {run_id} can't be read: {exc.strerror}") from exc
        with entry.lock:
            if time.monotonic() - entry.updated_s > UPDATE_S:
                self._update(run_id, entry, columns)
            yield columns

    def _update(self, run_id: str, entry: _Open, columns: RunColumns) -> None:
        try:
            columns.update()
        except (CommandError, OSError) as exc:
            # Removed or replaced since: what is in memory is of a run that is gone.
            self._forget(run_id, entry)
            raise NotFound(f"run {run_id} can't be read any more: {exc}") from exc
        entry.updated_s = time.monotonic()

    def _entry(self, run_id: str) -> _Open:
        with self._lock:
            if run_id not in self._open:
                path = runs_of(self._data_dir) / run_id
                self._open[run_id] = _Open(self._readers.submit(self._read, path))
            self._open.move_to_end(run_id)
            self._close_some()
            return self._open[run_id]

    def _close_some(self) -> None:
        """Close the runs that were looked at longest ago, until the bounds hold."""
        while len(self._open) > 1 and (
            len(self._open) > self._runs_max or sum(e.rows for e in self._open.values()) > ROWS_MAX
        ):
            _, entry = self._open.popitem(last=False)
            self._readers.submit(entry.close)

    def _forget(self, run_id: str, entry: _Open) -> None:
        with self._lock:
            if self._open.get(run_id) is entry:
                del self._open[run_id]
        self._readers.submit(entry.close)
