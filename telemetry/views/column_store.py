"""The column store: chunks of columns that are kept beside a journal for the next reader.

In: chunks of a journal, each behind the one before.
Out: files in RUN_DIR/columns, and from them the chunks that still fit the journal.
Never: reserves what the journal needs (it stays above min_free_bytes), or matters: the directory
may be deleted at any time, and all of it can be made again.

A chunk counts only if its version, its checksum and the uuid of the journal are right, if it
begins where the one before it ends, and if the journal still has the last record that the chunk
covers: same place, rows and checksum. A copy of a journal that lacks that record has none of the
chunk either. All behind the first chunk that does not count is read from the journal.

One process at a time writes, under a lock on the directory; files are renamed into place whole.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Final

from shared.files import write_atomically
from shared.locks import locked
from telemetry.journal.identity import journal_uuid
from telemetry.journal.place import is_at
from telemetry.run_dir import RunDir
from telemetry.views.column_chunk import Chunk, ChunkDamaged, open_chunk

log = logging.getLogger("telemetry.views")

MIN_FREE_BYTES: Final = 256 * 1024 * 1024
SUFFIX: Final = ".chunk"


def read_kept(run_dir: Path) -> list[Chunk]:
    """Return the chunks that count, in the order of their rows, without reading their arrays."""
    place = RunDir(run_dir)
    try:
        journal = journal_uuid(place.journal)
        paths = sorted(place.columns.glob(f"*{SUFFIX}"))
    except OSError:
        return []
    found: list[Chunk] = []
    for path in paths if journal else []:
        try:
            chunk = open_chunk(path)
        except ChunkDamaged as exc:
            log.debug("columns of %s from here on are not used: %s", run_dir, exc)
            break
        head, last = chunk.head, chunk.head.last_record
        is_next = head.journal == journal and head.first_row == _end_of(found)
        if not is_next or last is None or last.next_row != head.next_row:
            break
        if not is_at(place.journal, last):
            break
        found.append(chunk)
    return found


class ColumnStore:
    """The kept columns of one run, as one writer of perhaps several. Not thread-safe."""

    def __init__(self, run_dir: Path, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._run_dir, self._min_free_bytes = run_dir, min_free_bytes
        self._directory = RunDir(run_dir).columns
        self.is_off = False
        """True after a failure: then nothing more is kept."""

    def keep(self, chunk: Chunk) -> Chunk | None:
        """Write a chunk, and return it as the file has it; None where it is not kept.

        It is not kept where another process writes, where others have kept other chunks, on a
        disk without room, or where the directory can't be written or locked.
        """
        if self.is_off:
            return None
        data = chunk.encoded()
        try:
            if shutil.disk_usage(self._run_dir).free - len(data) < self._min_free_bytes:
                raise OSError(f"less than {self._min_free_bytes >> 20} MB would stay free")
            return self._write(chunk, data)
        except (OSError, ChunkDamaged) as exc:
            self._turn_off(exc)
            return None

    def discard(self) -> None:
        """Delete all kept columns of the run, because some of them are damaged."""
        if self.is_off:
            return
        try:
            with locked(self._directory):
                self._remove_from(0)
        except OSError as exc:
            self._turn_off(exc)

    def _write(self, chunk: Chunk, data: bytes) -> Chunk | None:
        self._directory.mkdir(exist_ok=True)
        with locked(self._directory):
            # Another writer may have been here since this one read the journal.
            if _end_of(read_kept(self._run_dir)) != chunk.head.first_row:
                return None
            self._remove_from(chunk.head.first_row)
            path = self._directory / f"{chunk.head.first_row:020d}{SUFFIX}"
            write_atomically(path, data)
            return open_chunk(path)

    def _remove_from(self, row: int) -> None:
        """Delete the files of chunks that begin at a row or behind it: they do not count."""
        for path in self._directory.glob(f"*{SUFFIX}"):
            if path.stem >= f"{row:020d}":
                path.unlink(missing_ok=True)

    def _turn_off(self, exc: Exception) -> None:
        self.is_off = True
        log.info("columns of %s are not kept: %s", self._run_dir, exc)


def _end_of(chunks: list[Chunk]) -> int:
    """Return the row behind the last of them, 0 without any."""
    return chunks[-1].head.next_row if chunks else 0
