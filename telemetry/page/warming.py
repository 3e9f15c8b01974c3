"""Warming: keeps the columns of long runs before anybody looks at them.

In: the runs of a data directory, as they grow.
Out: kept columns beside their journals, so that a run of a million events opens at once.
Never: does so for a run that is short enough to be read while a person waits; fails for one run.

Runs on a thread of its own, one run at a time, the newest first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from telemetry.errors import CommandError
from telemetry.journal.layout import read_mark
from telemetry.page.run_list import run_dirs
from telemetry.run_dir import RunDir, runs_of
from telemetry.views.columns import keep_columns

log = logging.getLogger("telemetry.page")

LOOK_S: Final = 20.0
GROWTH_ROWS: Final = 50_000
"""Rows that take about half a second to read."""


class Warming:
    """The thread that keeps columns. Ends with its process."""

    def __init__(
        self,
        data_dir: Path,
        keep: Callable[[Path], Any] = keep_columns,
        growth_rows: int = GROWTH_ROWS,
    ) -> None:
        """Keep the columns of the runs below data_dir, each time they have grown so much."""
        self._data_dir, self._keep, self._growth_rows = data_dir, keep, growth_rows
        self._kept_rows: dict[str, int] = {}

    def start(self) -> None:
        threading.Thread(target=self._work, name="warm", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                log.exception("the columns of runs can't be kept ahead")
            threading.Event().wait(LOOK_S)

    def look(self) -> None:
        """Keep the columns of each run that has grown enough."""
        for path in run_dirs(runs_of(self._data_dir)):
            mark = read_mark(RunDir(path).journal)
            rows = mark.next_row if mark else 0
            if rows - self._kept_rows.get(path.name, 0) < self._growth_rows:
                continue
            try:
                self._keep(path).close()
            except (CommandError, OSError) as exc:
                log.debug("columns of %s are not kept: %s", path.name, exc)
            self._kept_rows[path.name] = rows
