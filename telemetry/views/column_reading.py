"""Column reading: reads a journal into chunks of columns, and on from where they end.

In: the journal of a run.
Out: chunks, and the state behind the last of them.
Never: goes on behind rows that may still come: a journal that is being copied ends where its
files do, whatever its mark says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shared.closing import Closing
from telemetry.errors import CommandError
from telemetry.journal.identity import journal_uuid
from telemetry.journal.layout import Mark, read_mark, segments
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.scan import TAIL
from telemetry.run_dir import RunDir
from telemetry.views.column_builder import ColumnBuilder
from telemetry.views.column_chunk import Chunk, merged
from telemetry.views.column_state import State
from telemetry.views.column_store import ColumnStore, read_kept

CHUNK_ROWS: Final = 1 << 16
"""Rows of a whole chunk, at least."""
REST_ROWS_MIN: Final = 1 << 12
"""Rows that are kept at the end of a run, at least: fewer are read as fast from the journal."""
SMALL_CHUNKS_MAX: Final = 8
"""Chunks of fewer rows, as the updates of a live run give them, before they are made one."""

_Extent = tuple[Mark | None, int, int]


class ColumnReading(Closing):
    """The chunks of one run, and the place in its journal where they end. Not thread-safe."""

    def __init__(self, run_dir: Path, store: ColumnStore | None = None) -> None:
        """Begin behind the chunks that are kept already. store: keeps further ones."""
        self._journal, self._store = RunDir(run_dir).journal, store
        self._reader: JournalReader | None = None
        self._begin(read_kept(run_dir))

    def _begin(self, kept: list[Chunk]) -> None:
        self.chunks = kept
        self.kept = len(kept)
        """Number of chunks, from the first on, that are files."""
        self.is_damaged = False
        """True if rows could not be read: what is behind them is not kept."""
        self._extent: _Extent | None = None
        self.state = kept[-1].head.state.copy() if kept else State()
        next_row = kept[-1].head.next_row if kept else 0
        known = {key for c in kept for key in (*c.head.series, *c.head.histograms)}
        self._builder = ColumnBuilder(journal_uuid(self._journal), self.state, next_row, known)

    @property
    def next_row(self) -> int:
        """The row behind the last that is covered."""
        return self._builder.next_row

    def forget_kept(self) -> None:
        """Forget all chunks, some of which are damaged; the journal is read from its first row."""
        self.close()
        if self._store is not None:
            self._store.discard()
        self._begin([])

    def keep_rest(self) -> None:
        """Keep the rows behind the last whole chunk too, of a run that has ended."""
        rest = self.chunks[self.kept :]
        if self._store is not None and sum(chunk.rows for chunk in rest) >= REST_ROWS_MIN:
            self.chunks[self.kept :] = [merged(rest)]
            self._keep_next()

    def read_on(self) -> bool:
        """Read all that is on disk; return True if there was anything new.

        Raises:
            CommandError: the journal is gone or can't be read.
        """
        before = self.next_row, self.is_damaged
        try:
            if self._reader is None and not self._reopen():
                return False
            while not self._read_batch():
                pass
        except (OSError, NotAJournal) as exc:
            raise CommandError(f"{self._journal.parent} can't be read: {exc}") from exc
        return before != (self.next_row, self.is_damaged)

    def close(self) -> None:
        """Close the journal. May be called twice."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _read_batch(self) -> bool:
        """Take in a few MiB of rows; return True at the end of what is on disk."""
        reader, builder = self._reader, self._builder
        assert reader is not None
        batch = reader.read()
        for row in batch.rows:
            builder.take(row)
        for damage in batch.damage:
            builder.take_damage(damage)
            self.is_damaged = self.is_damaged or damage.kind != TAIL
        builder.next_row = max(builder.next_row, reader.next_row)
        if builder.rows >= CHUNK_ROWS or (batch.is_end and builder.has_any):
            self._add(builder.chunk(reader.last_record))
        if any(damage.kind == TAIL for damage in batch.damage):
            # The tail of a crash, or of a copy that is still being made: the latter grows.
            self.close()
            if builder.has_any:
                self._add(builder.chunk(reader.last_record))
            return True
        return batch.is_end

    def _reopen(self) -> bool:
        """Open the journal behind the last row, unless nothing in it has changed since."""
        extent = _extent(self._journal)
        if extent == self._extent:
            return False
        self._extent = extent
        self._reader = JournalReader(self._journal, self.next_row, is_recorded=True)
        return True

    def _add(self, chunk: Chunk) -> None:
        """Add a chunk; make one of small ones, and keep what is whole."""
        self.chunks.append(chunk)
        small = self.chunks[self.kept :]
        while small and small[0].rows >= CHUNK_ROWS:
            small.pop(0)
        is_whole = sum(each.rows for each in small) >= CHUNK_ROWS
        if len(small) > 1 and (is_whole or len(small) > SMALL_CHUNKS_MAX):
            self.chunks[-len(small) :] = [merged(small)]
        while len(self.chunks) > self.kept and self.chunks[self.kept].rows >= CHUNK_ROWS:
            if not self._keep_next():
                break

    def _keep_next(self) -> bool:
        """Replace the first chunk in memory by a file; return False if it is not kept."""
        # A file covers all rows up to its end: what could not be read now may be readable later.
        if self._store is None or self.is_damaged:
            return False
        kept = self._store.keep(self.chunks[self.kept])
        if kept is None:
            return False
        self.chunks[self.kept] = kept
        self.kept += 1
        return True


def _extent(journal: Path) -> _Extent:
    """Return what changes where a journal grows: its mark, its segments, the size of the last."""
    found = segments(journal)
    size = found[-1].path.stat().st_size if found else 0
    return read_mark(journal), len(found), size
