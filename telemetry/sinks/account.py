"""Account: the rows that one sink of one run skips, and the crashes counted per row.

In: the rows that a sink is given, and the crashes of its processes.
Out: the rows without those that are skipped.
Never: blames a row for an outside cause: a kill, a full disk, no memory.

A row at which the sink's process has crashed twice by its own fault (an unexpected
exception, SIGSEGV, SIGABRT, SIGBUS) is skipped. A row that the sink itself refuses is
skipped at once.
"""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shared.text import clean
from telemetry.journal.rows import Row
from telemetry.run_dir import RunDir
from telemetry.sinks.base import SinkUnavailable
from telemetry.sinks.skips import Skips
from telemetry.sinks.slot import OPENING, Slot

log = logging.getLogger("telemetry.sink")

DEATHS_MAX: Final = 2
FRAMES_SHOWN: Final = 6
_NO_ROWS_FAULT: Final = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE,
        errno.ENFILE, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENODEV, errno.ENXIO,
        errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT,
    }
)  # fmt: skip


class Account:
    """The slot and the skips of one sink of one run. Not thread-safe."""

    def __init__(self, out: RunDir, recorded: RunDir, sink: str, run_id: str) -> None:
        """Open the account; a row at which two processes crashed is skipped from here on.

        out: where the sink writes. recorded: the run; in a replay it is another directory.

        Raises:
            SinkUnavailable: the disk refuses.
        """
        self._sink, self._run_id = sink, run_id
        try:
            elsewhere = None if recorded == out else recorded.skips(sink)
            self.skips = Skips(out.skips(sink), elsewhere)
            self.slot = Slot(out.slot(sink))
        except OSError as exc:
            raise SinkUnavailable(f"the account of sink {sink} can't be opened: {exc}") from exc
        # Clear the phase that the last process left behind.
        self.slot.enter(OPENING)
        suspect = self.slot.suspect
        if suspect is not None and suspect.deaths >= DEATHS_MAX:
            self.skip(suspect.row, f"crashed {suspect.deaths} times: {suspect.reason}")
            self.slot.forget()

    def skip(self, row: int, reason: str) -> None:
        """Skip a row for good, logged once; the skip is on disk when this returns.

        Raises:
            SinkUnavailable: the disk refuses.
        """
        if row in self.skips:
            return
        try:
            self.skips.add(row, reason)
        except OSError as exc:
            raise SinkUnavailable(f"{self.skips.path} can't be written: {exc}") from exc
        log.warning(
            "sink=%s run=%s steps over row %d: %s",
            self._sink, self._run_id, row, clean(reason, 300),
        )  # fmt: skip

    def kept(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows that are not skipped."""
        if not len(self.skips):
            return rows
        return [row for row in rows if row.row not in self.skips]

    def note_crash(self, exc: Exception) -> str:
        """Count a crash against the current row; log it, and return it as one line."""
        why = clean(f"{type(exc).__name__}: {exc}", 300)
        suspect = None if _is_no_rows_fault(exc) else self.slot.note_death(why)
        where = f" at row {suspect.row}" if suspect else ""
        log.error(
            "sink=%s run=%s crashed%s: %s (%s)",
            self._sink, self._run_id, where, why, _places(exc),
        )  # fmt: skip
        return why

    def close(self) -> None:
        """Close the slot. May be called twice."""
        self.slot.close()


def _places(exc: Exception) -> str:
    """Return the innermost frames of an exception as one line, innermost first.

    A full traceback through a deep library could fill pages of log.
    """
    frames = traceback.extract_tb(exc.__traceback__)[-FRAMES_SHOWN:]
    return ", ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))


def _is_no_rows_fault(exc: Exception) -> bool:
    """True if the machine, not the row, caused the error: no memory, a full disk, no access."""
    return isinstance(exc, MemoryError) or (
        isinstance(exc, OSError) and exc.errno in _NO_ROWS_FAULT
    )
