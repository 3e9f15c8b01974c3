"""A chunk of columns: consecutive rows of a journal as arrays, in memory or as a file.

    RUN_DIR/columns/<first row, 20 digits>.chunk, all little-endian

      magic         8   b"TELCOLS\\0"
      version       u32
      head length   u32
      head crc      u32  crc32 of the head
      reserved      u32
      head               MessagePack, a ChunkHead
      arrays             one behind the other, as `arrays` of the head says: type, length, crc32

The first four arrays are those of the moments: an event that has values or a histogram is one
moment, with a step, a wall time, a stream (its place in `streams` of the state) and a kind (its
place in `kinds`). Every series then has two arrays: the moments of its values, and the values.
A histogram has four: moments, numbers of counts, edges and counts, the latter two joined.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from telemetry.journal.place import RecordPlace
from telemetry.views.column_state import RawMark, State, TextChange

MAGIC: Final = b"TELCOLS\x00"
VERSION: Final = 1
HEAD_MAX_BYTES: Final = 256 * 1024 * 1024
_START: Final = struct.Struct("<8sIIII")

NO_STEP: Final = -1
"""Step of a moment that has none."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Array = NDArray[Any]


class ChunkDamaged(Exception):
    """Error: a file of columns is not one, is cut short, or has a wrong checksum."""


class ArrayEntry(msgspec.Struct, frozen=True, array_like=True):
    """Type, as numpy writes it, number of elements, and crc32 of one array."""

    type: str
    length: int
    crc: int


class ChunkHead(msgspec.Struct, kw_only=True):
    """All of a chunk but its arrays."""

    journal: str
    """The uuid of the journal, as `journal_uuid` returns it."""
    first_row: int
    next_row: int
    last_record: RecordPlace | None
    """The record of row next_row - 1."""
    series: list[tuple[str, str]]
    """Source and name of each series, in the order of their arrays."""
    histograms: list[tuple[str, str]]
    marks: list[RawMark]
    texts: list[TextChange]
    state: State
    """The state behind the last row of this chunk."""
    arrays: list[ArrayEntry] = []


class Moments(NamedTuple):
    """The moments of a chunk, one element each."""

    step: Ints
    wall_ns: Ints
    stream: NDArray[np.int32]
    kind: NDArray[np.int16]


class Points(NamedTuple):
    """The values of one series in a chunk, each with the moment that it belongs to."""

    moment: NDArray[np.uint32]
    value: Floats


class HistogramPoints(NamedTuple):
    """The histograms of one name in a chunk: edges and counts are joined."""

    moment: NDArray[np.uint32]
    length: NDArray[np.uint32]
    edges: Floats
    counts: Floats


class Chunk:
    """Rows first_row to next_row - 1 of a journal; the arrays are in memory, or read when needed.

    Raises ChunkDamaged wherever arrays are read from a file that is gone or damaged.
    """

    def __init__(self, head: ChunkHead, arrays: list[Array] | Path, start: int = 0) -> None:
        """Take arrays, or the file that has them from byte `start` on."""
        self.head = head
        self._arrays = arrays
        self._places = _places(head.arrays, start) if isinstance(arrays, Path) else []
        self._series = {key: 4 + 2 * i for i, key in enumerate(head.series)}
        first = 4 + 2 * len(head.series)
        self._histograms = {key: first + 4 * i for i, key in enumerate(head.histograms)}
        self._moments: Moments | None = None

    @property
    def rows(self) -> int:
        return self.head.next_row - self.head.first_row

    def moments(self) -> Moments:
        """Return the moments; they are kept in memory, because all series need them."""
        if self._moments is None:
            self._moments = Moments(*(self._array(i) for i in range(4)))
        return self._moments

    def points(self, source: str, name: str) -> Points | None:
        """Return the values of a series; None where the chunk has none."""
        at = self._series.get((source, name))
        return None if at is None else Points(self._array(at), self._array(at + 1))

    def histograms(self, source: str, name: str) -> HistogramPoints | None:
        """Return the histograms of one name; None where the chunk has none."""
        at = self._histograms.get((source, name))
        return None if at is None else HistogramPoints(*(self._array(at + i) for i in range(4)))

    def encoded(self) -> bytes:
        """Return the bytes of the file that has this chunk. Only for a chunk in memory."""
        assert not isinstance(self._arrays, Path)
        parts = [np.ascontiguousarray(array).tobytes() for array in self._arrays]
        self.head.arrays = [
            ArrayEntry(array.dtype.str, len(array), zlib.crc32(part))
            for array, part in zip(self._arrays, parts, strict=True)
        ]
        head = msgspec.msgpack.encode(self.head)
        start = _START.pack(MAGIC, VERSION, len(head), zlib.crc32(head), 0)
        return b"".join((start, head, *parts))

    def _array(self, number: int) -> Array:
        if not isinstance(self._arrays, Path):
            return self._arrays[number]
        entry, offset = self.head.arrays[number], self._places[number]
        size = entry.length * _item_bytes(entry)
        data = _read_part(self._arrays, offset, size)
        if len(data) != size or zlib.crc32(data) != entry.crc:
            raise ChunkDamaged(f"{self._arrays}: array {number} is damaged")
        return np.frombuffer(data, entry.type)


def merged(chunks: list[Chunk]) -> Chunk:
    """Return one chunk in memory that has the rows of several, each behind the one before."""
    first, last = chunks[0].head, chunks[-1].head
    all_moments = [chunk.moments() for chunk in chunks]
    starts = np.cumsum([0, *(len(moments.step) for moments in all_moments)])[:-1].astype(np.uint32)
    arrays: list[Array] = [np.concatenate(column) for column in zip(*all_moments, strict=True)]
    series = list(dict.fromkeys(key for chunk in chunks for key in chunk.head.series))
    histograms = list(dict.fromkeys(key for chunk in chunks for key in chunk.head.histograms))
    for find, keys in ((Chunk.points, series), (Chunk.histograms, histograms)):
        for key in keys:
            found = [find(chunk, *key) for chunk in chunks]
            parts = [
                part._replace(moment=part.moment + start)
                for start, part in zip(starts, found, strict=True)
                if part is not None
            ]
            arrays += [np.concatenate(column) for column in zip(*parts, strict=True)]
    head = ChunkHead(
        journal=first.journal,
        first_row=first.first_row,
        next_row=last.next_row,
        last_record=last.last_record,
        series=series,
        histograms=histograms,
        marks=[mark for chunk in chunks for mark in chunk.head.marks],
        texts=[change for chunk in chunks for change in chunk.head.texts],
        state=last.state,
    )
    return Chunk(head, arrays)


def open_chunk(path: Path) -> Chunk:
    """Read the head of a file of columns.

    Raises:
        ChunkDamaged: it is not one of this version, is cut short, or has a damaged head.
    """
    start = _read_part(path, 0, _START.size)
    if len(start) < _START.size:
        raise ChunkDamaged(f"{path} is cut short")
    magic, version, length, crc, _ = _START.unpack(start)
    if magic != MAGIC or version != VERSION or length > HEAD_MAX_BYTES:
        raise ChunkDamaged(f"{path} has no columns of version {VERSION}")
    data = _read_part(path, _START.size, length)
    if len(data) != length or zlib.crc32(data) != crc:
        raise ChunkDamaged(f"{path}: its head is damaged")
    try:
        head = msgspec.msgpack.decode(data, type=ChunkHead)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise ChunkDamaged(f"{path}: {exc}") from exc
    chunk = Chunk(head, path, _START.size + length)
    wanted = 4 + 2 * len(head.series) + 4 * len(head.histograms)
    end = _places(head.arrays, _START.size + length, with_end=True)[-1]
    if len(head.arrays) != wanted or end != _size(path):
        raise ChunkDamaged(f"{path} is not as long as its head says")
    return chunk


def _places(arrays: list[ArrayEntry], start: int, *, with_end: bool = False) -> list[int]:
    """Return the offset of each array, and with_end that behind the last of them."""
    found = [start]
    for entry in arrays:
        found.append(found[-1] + entry.length * _item_bytes(entry))
    return found if with_end else found[:-1]


def _item_bytes(entry: ArrayEntry) -> int:
    return int(np.dtype(entry.type).itemsize)


def _read_part(path: Path, offset: int, size: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)
    except OSError as exc:
        raise ChunkDamaged(f"{path}: {exc.strerror}") from exc


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as exc:
        raise ChunkDamaged(f"{path}: {exc.strerror}") from exc
