"""Event files: framed events on disk, and what a crash leaves of them.

In: serialized events with the subdirectory and row that they belong to.
Out: event files, and how much of each is safe.
Never: appends to a file of an earlier process, or touches files of others.

A file is named by its first row, so TensorBoard, which takes the files of a
subdirectory in the order of their names, reads rows in order:

    <subdirectory>/events.out.tfevents.<first row, 20 digits>.telemetry

and is a sequence of records, little-endian, with masked crc32c:

    length u64 | crc of length u32 | event | crc of event u32

A commit is the lengths of the files that may still grow, taken after they
were synced. Whatever stands behind a commit is cut off, and rows go on in new
files: a reader that had seen more than was committed sees those points again,
and takes them for the same.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import google_crc32c

from telemetry.sinks.tensorboard.summaries import version_event

BUFFER_MAX_BYTES: Final = 4 * 1024 * 1024
_NAME: Final = re.compile(r"events\.out\.tfevents\.(\d{20})\.telemetry")
_LENGTH: Final = struct.Struct("<Q")
_CRC: Final = struct.Struct("<I")


class DamagedFiles(Exception):
    """A file holds less than was committed; the message names it."""


def file_name(first_row: int) -> str:
    return f"events.out.tfevents.{first_row:020d}.telemetry"


def frame(event: bytes) -> bytes:
    """One event as a record."""
    length = _LENGTH.pack(len(event))
    return b"".join((length, _masked_crc(length), event, _masked_crc(event)))


class EventFiles:
    """The event files of one run under root. Not thread-safe.

    Files are open only while they are written to, so that many ranks cost
    buffers and not descriptors.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths: dict[str, str] = {}
        self._lengths: dict[str, int] = {}
        self._buffers: dict[str, bytearray] = {}
        self._buffered_bytes = 0

    def recover(self, row: int, lengths: dict[str, int]) -> None:
        """Cut what was written behind the commit of the rows before row.

        Raises:
            DamagedFiles: some of what was committed is gone; nothing was cut.
            OSError: as from the disk.
        """
        self.discard()
        self._check(lengths)
        for path, length in lengths.items():
            _cut(self._root / path, length)
        for file in self._files_since(row):
            file.unlink()
            _sync_directory(file.parent)

    def append(self, directory: str, row: int, wall_ns: int, event: bytes) -> None:
        """Take an event of a row; it reaches the disk with the next sync at the latest.

        Raises:
            OSError: as from the disk; only recover helps then.
        """
        if directory not in self._paths:
            self._paths[directory] = f"{directory}/{file_name(row)}"
            self._buffer(directory, frame(version_event(wall_ns)))
        self._buffer(directory, frame(event))
        if self._buffered_bytes >= BUFFER_MAX_BYTES:
            self.sync()

    def sync(self) -> dict[str, int]:
        """Bring everything to the disk; returns the lengths to commit.

        Raises:
            OSError: as from the disk; only recover helps then.
        """
        for directory, buffer in self._buffers.items():
            self._write(self._paths[directory], buffer)
        self._buffers.clear()
        self._buffered_bytes = 0
        return dict(self._lengths)

    def discard(self) -> None:
        """Forget what was not synced, and which files were this process's."""
        for known in (self._paths, self._lengths, self._buffers):
            known.clear()
        self._buffered_bytes = 0

    def _buffer(self, directory: str, data: bytes) -> None:
        self._buffers.setdefault(directory, bytearray()).extend(data)
        self._buffered_bytes += len(data)

    def _write(self, path: str, data: bytearray) -> None:
        full = self._root / path
        is_new = path not in self._lengths
        if is_new:
            _make_directory(full.parent)
        # Unbuffered, so that closing after an error writes nothing more; "x",
        # since a file of that name can only mean two writers.
        with full.open("xb" if is_new else "ab", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fdatasync(file.fileno())
        if is_new:
            _sync_directory(full.parent)
        self._lengths[path] = self._lengths.get(path, 0) + len(data)

    def _check(self, lengths: dict[str, int]) -> None:
        for path, length in lengths.items():
            full = self._root / path
            size = full.stat().st_size if full.exists() else 0
            if size < length:
                raise DamagedFiles(f"{full} has {size} of {length} bytes")

    def _files_since(self, row: int) -> Iterator[Path]:
        for path in sorted(self._root.glob("*/events.out.tfevents.*")):
            match = _NAME.fullmatch(path.name)
            if match and int(match[1]) >= row:
                yield path


def _masked_crc(data: bytes) -> bytes:
    # TFRecord masks its crc, since a crc of data that holds crcs is weak.
    crc = google_crc32c.value(data)
    return _CRC.pack((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _cut(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) > length:
            file.truncate(length)
            os.fsync(file.fileno())


def _make_directory(path: Path) -> None:
    """Create a directory and its parents, so that a power cut leaves none of them out."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(exist_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
