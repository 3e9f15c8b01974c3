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
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared.ids import check_run_id, check_session, check_source
from shared.record import (
    EVENTS,
    RECORD_HEADER_BYTES,
    RESYNC_MAX_BYTES,
    CorruptRecord,
    RecordHeader,
    StreamEntry,
    decode_record_header,
    decode_segment_header,
    encode_record,
    encode_segment_header,
    find_record,
    payload_of,
)

SUFFIX: Final = ".spool"
FRAMES_MAX: Final = 1_000_000
"""Each frame costs its emitter some 200 bytes of memory, wherever its body is."""


class SpoolUnavailable(Exception):
    """The directory can't be written, or the spool is full. The frame stays in memory."""


class SpoolDamaged(Exception):
    """A frame can't be read back from the spool as it was written."""


class Spool:
    """A locked spool file. Not thread-safe: the sender thread owns it."""

    def __init__(self, fd: int, path: Path, entry: StreamEntry, header_bytes: int) -> None:
        self.path = path
        self.entry = entry
        self._fd = fd
        self._header_bytes = header_bytes
        self._frames = 0
        self._end = os.fstat(fd).st_size

    @classmethod
    def create(cls, directory: Path, run_id: str, session: str, source: str) -> Spool:
        """A new spool for a session that has none yet.

        Raises:
            SpoolUnavailable: the directory can't be made or written.
        """
        entry = StreamEntry(run_id, session, source, -1)
        path = directory / f"{run_id}.{session}{SUFFIX}"
        # Locked and whole before it has its name: nobody can adopt it half made.
        making = path.with_suffix(".making")
        header = encode_segment_header(bytes(16), 0, {0: entry})
        fd = -1
        try:
            directory.mkdir(parents=True, exist_ok=True)
            fd = os.open(making, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(fd, header, 0)
            making.rename(path)
        except OSError as exc:
            if fd >= 0:
                os.close(fd)
                with contextlib.suppress(OSError):
                    making.unlink()
            raise SpoolUnavailable(f"spool {path}: {_why(exc)}") from exc
        return cls(fd, path, entry, len(header))

    @property
    def modified_ns(self) -> int:
        """When its last frame was written."""
        return os.fstat(self._fd).st_mtime_ns

    @property
    def is_full_of_frames(self) -> bool:
        return self._frames >= FRAMES_MAX

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
            _write(self._fd, record, at)
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, at)
            raise SpoolUnavailable(f"spool {self.path}: {exc.strerror}") from exc
        self._end += len(record)
        self._frames += 1
        return at + RECORD_HEADER_BYTES

    def load(self, offset: int, size: int) -> bytes:
        """The payload that append left at offset.

        Raises:
            SpoolDamaged: it is not there as it was written.
        """
        start = offset - RECORD_HEADER_BYTES
        try:
            record = memoryview(os.pread(self._fd, RECORD_HEADER_BYTES + size, start))
            header = decode_record_header(record)
            payload = None if header is None else payload_of(record, 0, header)
        except (OSError, CorruptRecord) as exc:
            raise SpoolDamaged(f"spool {self.path}: {exc}") from exc
        if payload is None:
            raise SpoolDamaged(f"spool {self.path}: cut short")
        return payload

    def frames(self) -> Iterator[tuple[RecordHeader, int]]:
        """Frames in it, in order, each with the offset of its payload.

        Reads headers, not payloads: it may be a gigabyte. What a crash tore off
        at the end is passed over, and so is a damaged header with its payload.
        """
        offset, next_seq = self._header_bytes, 0
        while (found := self._next_header(offset, next_seq)) is not None:
            header, at = found
            offset = at + header.size
            if offset > self._end:
                # Torn, or a whole header that lies about what follows: only the first is likely.
                return
            yield header, at + RECORD_HEADER_BYTES
            next_seq = header.next_row

    def clear(self) -> None:
        """Forget every frame: all are acknowledged."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._header_bytes)
            self._end = self._header_bytes
            self._frames = 0

    def close(self, *, delete: bool) -> None:
        """Let go of the file, and remove it where nothing in it is needed. May be called twice."""
        if self._fd < 0:
            return
        # Unlinked while still locked: nobody can adopt a file that is going away.
        if delete:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1

    def abandon(self) -> None:
        """Let go of our copy of the file in a forked child: with it open, the lock
        would outlive the parent that holds it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _next_header(self, offset: int, seq_min: int) -> tuple[RecordHeader, int] | None:
        """The next record header at or after offset, and where it is."""
        head = memoryview(os.pread(self._fd, RECORD_HEADER_BYTES, offset))
        with contextlib.suppress(CorruptRecord):
            header = decode_record_header(head)
            if header is None or header.row >= seq_min:
                return None if header is None else (header, offset)
        size = RESYNC_MAX_BYTES + 2 * RECORD_HEADER_BYTES
        window = memoryview(os.pread(self._fd, size, offset + 1))
        at = find_record(window, 0, seq_min)
        if at is None:
            return None
        header = decode_record_header(window, at)
        assert header is not None
        return header, offset + 1 + at


def adopt_orphans(directory: Path) -> list[Spool]:
    """Lock and open the spools whose emitters are gone, oldest first."""
    if not directory.is_dir():
        return []
    adopted = [spool for path in directory.glob(f"*{SUFFIX}") if (spool := _adopt(path))]
    return sorted(adopted, key=lambda spool: spool.modified_ns)


def _adopt(path: Path) -> Spool | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
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


def _why(exc: OSError) -> str:
    """An error in words; that a file system has no locks is told as that."""
    if exc.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        return f"its file system can't lock files ({exc.strerror}); choose another directory"
    return exc.strerror or type(exc).__name__


def _write(fd: int, data: bytes, at: int) -> None:
    """Write all of data, or raise OSError."""
    written = 0
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], at + written)
