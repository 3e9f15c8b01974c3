"""Spool: where an emitter keeps what no sidecar has acknowledged yet.

In: frames of one session.
Out: the same frames, to this process or to a later one.
Never: is written or deleted by anyone who does not hold its lock.

One file a session, `<run_id>.<session>.spool`: a segment header whose table
has the stream as number 0, then its frames as records; their row is their
seq. The file is held by a flock while its emitter lives; a free lock means
that the emitter is gone and its frames wait for somebody to send them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from shared.ids import check_run_id, check_session, check_source
from shared.record import (
    EVENTS,
    RECORD_HEADER_BYTES,
    CorruptRecord,
    RecordHeader,
    StreamEntry,
    decode_record_header,
    decode_segment_header,
    encode_record,
    encode_segment_header,
    payload_of,
)

SUFFIX = ".spool"


class SpoolUnavailable(Exception):
    """The directory can't be written, or the spool is full. The frame stays in memory."""


class Spool:
    """A locked spool file. Not thread-safe: the sender thread owns it."""

    def __init__(self, fd: int, path: Path, entry: StreamEntry, header_bytes: int) -> None:
        self.path = path
        self.entry = entry
        self._fd = fd
        self._header_bytes = header_bytes
        self._end = os.fstat(fd).st_size

    @classmethod
    def create(cls, directory: Path, run_id: str, session: str, source: str) -> Spool:
        """A new spool for a session that has none yet.

        Raises:
            SpoolUnavailable: the directory can't be made or written.
        """
        entry = StreamEntry(run_id, session, source, -1)
        path = directory / f"{run_id}.{session}{SUFFIX}"
        header = encode_segment_header(bytes(16), 0, {0: entry})
        try:
            directory.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(fd, header, 0)
        except OSError as exc:
            raise SpoolUnavailable(f"spool {path}: {exc.strerror}") from exc
        return cls(fd, path, entry, len(header))

    @property
    def size(self) -> int:
        """Bytes of frames in it."""
        return self._end - self._header_bytes

    def append(self, base_seq: int, count: int, body: bytes) -> int:
        """Write one frame, and return where its payload can be loaded from.

        Raises:
            SpoolUnavailable: nothing of it was kept.
        """
        record = encode_record(EVENTS, 0, base_seq, base_seq, count, body)
        at = self._end
        try:
            written = os.pwrite(self._fd, record, at)
            if written < len(record):
                raise OSError(0, "short write")
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, at)
            raise SpoolUnavailable(f"spool {self.path}: {exc.strerror}") from exc
        self._end += len(record)
        return at + RECORD_HEADER_BYTES

    def load(self, offset: int, size: int) -> bytes:
        """The payload that append left at offset."""
        return os.pread(self._fd, size, offset)

    def frames(self) -> Iterator[tuple[RecordHeader, int]]:
        """Whole frames in it, in order, each with the offset of its payload.

        What a crash tore off at the end, and damaged records, are passed over.
        """
        data = memoryview(os.pread(self._fd, self._end, 0))
        offset, next_seq = self._header_bytes, 0
        while (header := _header_at(data, offset)) is not None:
            if header.base_seq >= next_seq and _is_whole(data, offset, header):
                yield header, offset + RECORD_HEADER_BYTES
                next_seq = header.base_seq + header.count
            offset += header.size

    def clear(self) -> None:
        """Forget every frame: all are acknowledged."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._header_bytes)
            self._end = self._header_bytes

    def close(self, *, delete: bool) -> None:
        """Let go of the file, and remove it where nothing in it is needed. May be called twice."""
        if self._fd < 0:
            return
        # Unlinked while still locked: nobody can adopt a file that is going away.
        if delete:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1


def adopt_orphans(directory: Path) -> list[Spool]:
    """Lock and open the spools whose emitters are gone, oldest first."""
    if not directory.is_dir():
        return []
    paths = sorted(directory.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
    return [spool for path in paths if (spool := _adopt(path)) is not None]


def _adopt(path: Path) -> Spool | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between open and flock its owner may have finished and unlinked it.
        if os.fstat(fd).st_nlink == 0:
            raise OSError(0, "gone")
        entry, header_bytes = _read_header(fd)
    except (OSError, CorruptRecord, ValueError):
        os.close(fd)
        return None
    return Spool(fd, path, entry, header_bytes)


def _read_header(fd: int) -> tuple[StreamEntry, int]:
    header = decode_segment_header(memoryview(os.pread(fd, 4096, 0)))
    if header is None or set(header.streams) != {0}:
        raise CorruptRecord("not a spool")
    entry = header.streams[0]
    check_run_id(entry.run_id)
    check_session(entry.session)
    check_source(entry.source)
    return entry, header.size


def _header_at(data: memoryview, offset: int) -> RecordHeader | None:
    try:
        return decode_record_header(data, offset)
    except CorruptRecord:
        return None


def _is_whole(data: memoryview, offset: int, header: RecordHeader) -> bool:
    try:
        return payload_of(data, offset, header) is not None
    except CorruptRecord:
        return False
