"""Slot: a page of memory that says which row a sink process is at, also after it dies.

In: the phase and the row, before each is begun.
Out: the same after any death of the process; the number of its crashes at one row.
Never: counts a death with an outside cause, such as a power cut, so the page needs no sync.

One page, `cursors/<sink>.slot`, mapped by the process and read by its supervisor:

    magic 4 | phase u8 | 3 unused | row i64 | suspect row i64 | deaths u32 | length u16 | reason

One process at a time uses the page: the sink, then its supervisor, then the next sink.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, overload

from shared.files import write_all
from shared.text import clean
from telemetry.journal.rows import Row

IDLE, OPENING, AT_ROW, COMMITTING, FINISHING = range(5)
"""Phases. Only a death at a row counts against that row."""

MAGIC: Final = b"SLT1"
SIZE: Final = 4096
REASON_MAX_BYTES: Final = 900
_AT: Final = struct.Struct("<B3xq")
_SUSPECT: Final = struct.Struct("<qIH")
_AT_OFFSET: Final = len(MAGIC)
_SUSPECT_OFFSET: Final = _AT_OFFSET + _AT.size
_REASON_OFFSET: Final = _SUSPECT_OFFSET + _SUSPECT.size
_NOBODY: Final = -1


class Suspect(NamedTuple):
    """A row at which a sink has crashed, the number of crashes, and the last reason."""

    row: int
    deaths: int
    reason: str


class Slot:
    """The slot page of one sink of one run. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Map the page; a new or a damaged one begins empty.

        Raises:
            OSError: the file can't be made.
        """
        self._page = _mapped(path)
        if self._page[:_AT_OFFSET] != MAGIC:
            self._page[:] = bytes(SIZE)
            self._page[:_AT_OFFSET] = MAGIC
            self.forget()

    def enter(self, phase: int, row: int = _NOBODY) -> None:
        """Record the phase, and the row, that begins now."""
        _AT.pack_into(self._page, _AT_OFFSET, phase, row)

    def announced(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows; iterating over them records each as the current row."""
        return _Announced(rows, self)

    def note_death(self, reason: str) -> Suspect | None:
        """Count a crash against the current row, and return the suspect; None between rows.

        Clears the current row, so that no crash is counted twice.
        """
        phase, row = _AT.unpack_from(self._page, _AT_OFFSET)
        self.enter(IDLE)
        if phase != AT_ROW:
            return None
        before = self.suspect
        deaths = before.deaths + 1 if before is not None and before.row == row else 1
        text = clean(reason, 300).encode()[:REASON_MAX_BYTES]
        _SUSPECT.pack_into(self._page, _SUSPECT_OFFSET, row, deaths, len(text))
        self._page[_REASON_OFFSET : _REASON_OFFSET + len(text)] = text
        return self.suspect

    @property
    def suspect(self) -> Suspect | None:
        """The row of the last crash that was counted; None if there is none."""
        row, deaths, length = _SUSPECT.unpack_from(self._page, _SUSPECT_OFFSET)
        if row == _NOBODY:
            return None
        text = self._page[_REASON_OFFSET : _REASON_OFFSET + min(length, REASON_MAX_BYTES)]
        return Suspect(row, deaths, text.decode(errors="replace"))

    def forget(self) -> None:
        """Clear the counted crashes."""
        _SUSPECT.pack_into(self._page, _SUSPECT_OFFSET, _NOBODY, 0, 0)

    def close(self) -> None:
        """Unmap the page. May be called twice."""
        self._page.close()


class _Announced(Sequence[Row]):
    def __init__(self, rows: Sequence[Row], slot: Slot) -> None:
        self._rows = rows
        self._slot = slot

    def __iter__(self) -> Iterator[Row]:
        enter = self._slot.enter
        for row in self._rows:
            enter(AT_ROW, row.row)
            yield row
        # After its loop a sink works on all rows together: a crash there blames no row.
        enter(COMMITTING)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]


def _mapped(path: Path) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        if os.fstat(fd).st_size != SIZE:
            # Written, not only extended: on a full disk, touching a hole in the file would
            # kill the process with SIGBUS.
            os.ftruncate(fd, 0)
            write_all(fd, bytes(SIZE), 0)
        return mmap.mmap(fd, SIZE)
    finally:
        os.close(fd)
