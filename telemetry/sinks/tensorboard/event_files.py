"""Event files: framed events on disk, committed by length and cut back after a crash.

In: serialized events with the subdirectory and row that they belong to.
Out: event files, and the length of each that is on disk.
Never: appends to a file of an earlier process, gives a file a name that was
used before, touches files that the sink did not write, or follows a symbolic link.

A file is named by its first row and the start of the sink that wrote it, so
TensorBoard, which takes the files of a subdirectory in the order of their
names, reads rows in order:

    <subdirectory>/events.out.tfevents.<first row, 20 digits>.<start, 6 digits>.telemetry

A start is counted, and the count is synced, before the first file of a process
is written: TensorBoard's fast loader keeps a file that was removed open, and
never sees what is written under its name again (measured). A file is a sequence
of records, little-endian, with masked crc32c:

    length u64 | crc of length u32 | event | crc of event u32

A commit is the lengths of the files that may still grow, taken after they
were synced. After a crash, bytes behind the commit are cut off, and rows continue
in new files: a reader that had seen more than was committed sees those points
again with the same tags, steps and values.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import google_crc32c

from shared.files import cut, make_directory, sync_directory, sync_file, write_all
from telemetry.sinks.tensorboard.bounds import BOUNDS
from telemetry.sinks.tensorboard.starts import Starts
from telemetry.sinks.tensorboard.summaries import version_event

_log = logging.getLogger(__name__)

# Files of the first version have no start in their names.
_NAME: Final = re.compile(r"events\.out\.tfevents\.(\d{20})(?:\.(\d{6,}))?\.telemetry")
_LENGTH: Final = struct.Struct("<Q")
_CRC: Final = struct.Struct("<I")


class DamagedFiles(Exception):
    """Error: a file holds less than was committed; the message names it."""


def file_name(first_row: int, start: int) -> str:
    return f"events.out.tfevents.{first_row:020d}.{start:06d}.telemetry"


def frame(event: bytes) -> bytes:
    """Frame one serialized event as a record of the file."""
    length = _LENGTH.pack(len(event))
    return b"".join((length, _masked_crc(length), event, _masked_crc(event)))


class EventFiles:
    """The event files of one run under root. Not thread-safe.

    Files are open only while they are written to, so that many ranks need many
    buffers, but not many descriptors.
    """

    def __init__(
        self, root: Path, starts: Starts, buffer_max_bytes: int = BOUNDS.buffer_bytes
    ) -> None:
        self._buffer_max_bytes = buffer_max_bytes
        self._root = root
        self._starts = starts
        self._paths: dict[str, str] = {}
        self._lengths: dict[str, int] = {}
        self._buffers: dict[str, bytearray] = {}
        self._buffered_bytes = 0
        self._unsynced: dict[str, bool] = {}
        """Paths of files written to since their last sync, each with True if it is new."""

    def recover(self, row: int, lengths: dict[str, int]) -> None:
        """Cut back all files to the commit of the rows before row, and remove later files.

        Raises:
            DamagedFiles: committed bytes are missing; nothing was cut.
            OSError: as from the disk.
        """
        self.discard()
        self._check(lengths)
        highest = 0
        for directory in self._directories():
            names = [path.name for path in directory.iterdir()]
            matches = [match for name in names if (match := _NAME.fullmatch(name))]
            highest = max([highest, *(int(match[2] or 0) for match in matches)])
            self._remove(directory, [m.string for m in matches if int(m[1]) >= row])
        # Start above the numbers in existing names: the file of the count may be lost.
        self._starts.begin(highest)
        for path, length in lengths.items():
            _cut(self._root / path, length)

    def append(self, directory: str, row: int, wall_ns: int, event: bytes) -> None:
        """Buffer an event of a row; readers see it after `flush`, and `sync` makes it durable.

        Raises:
            OSError: as from the disk; only recover helps then.
        """
        if directory not in self._paths:
            self._paths[directory] = f"{directory}/{file_name(row, self._starts.number())}"
            self._buffer(directory, frame(version_event(wall_ns)))
        self._buffer(directory, frame(event))
        if self._buffered_bytes >= self._buffer_max_bytes:
            self.flush()

    def flush(self) -> None:
        """Write all buffers to their files, where readers see them, without waiting for the disk.

        Raises:
            OSError: as from the disk; only recover helps then.
        """
        for directory, buffer in self._buffers.items():
            self._write(self._paths[directory], buffer)
        self._buffers.clear()
        self._buffered_bytes = 0

    def sync(self) -> dict[str, int]:
        """Write all buffers, and make all that was written durable; return the lengths to commit.

        Raises:
            OSError: as from the disk; only recover helps then.
        """
        self.flush()
        for path, is_new in self._unsynced.items():
            sync_file(self._root / path)
            if is_new:
                sync_directory((self._root / path).parent)
        self._unsynced.clear()
        return dict(self._lengths)

    def discard(self) -> None:
        """Drop the buffers and the list of this process's files."""
        for known in (self._paths, self._lengths, self._buffers, self._unsynced):
            known.clear()
        self._buffered_bytes = 0

    def _buffer(self, directory: str, data: bytes) -> None:
        self._buffers.setdefault(directory, bytearray()).extend(data)
        self._buffered_bytes += len(data)

    def _write(self, path: str, data: bytearray) -> None:
        full = self._root / path
        is_new = path not in self._lengths
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        if is_new:
            _make_own_directory(self._root)
            _make_own_directory(full.parent)
            # O_EXCL, because an existing file of that name means that there are two writers.
            flags |= os.O_CREAT | os.O_EXCL
        descriptor = os.open(full, flags, 0o644)
        self._unsynced[path] = is_new or self._unsynced.get(path, False)
        try:
            write_all(descriptor, data, self._lengths.get(path, 0))
        finally:
            os.close(descriptor)
        self._lengths[path] = self._lengths.get(path, 0) + len(data)

    def _check(self, lengths: dict[str, int]) -> None:
        for path, length in lengths.items():
            full = self._root / path
            is_own = _NAME.fullmatch(full.name) and full.parent.parent == self._root
            if not is_own or _is_link(self._root) or _is_link(full.parent) or _is_link(full):
                raise DamagedFiles(f"{full} is no event file of this sink")
            size = full.stat().st_size if full.exists() else 0
            if size < length:
                raise DamagedFiles(f"{full} has {size} of {length} bytes")

    def _directories(self) -> Iterator[Path]:
        if _is_link(self._root) or not self._root.is_dir():
            return
        for path in sorted(self._root.iterdir()):
            if path.is_dir() and not _is_link(path):
                yield path

    def _remove(self, directory: Path, names: list[str]) -> None:
        """Remove files for good, and with the last of them the directory."""
        if not names:
            return
        for name in names:
            (directory / name).unlink()
        sync_directory(directory)
        if not list(directory.iterdir()):
            directory.rmdir()


def _make_own_directory(path: Path) -> None:
    """Make a directory, durably; a symbolic link in its place is removed."""
    if _is_link(path):
        _log.warning("%s is a symbolic link: it is replaced by a directory", path)
        path.unlink()
    make_directory(path)


def _is_link(path: Path) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _masked_crc(data: bytes) -> bytes:
    # TFRecord masks its crc, because the crc of data that contains crcs is weak.
    crc = google_crc32c.value(data)
    return _CRC.pack((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _cut(path: Path, length: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size > length:
            cut(descriptor, length)
    finally:
        os.close(descriptor)
