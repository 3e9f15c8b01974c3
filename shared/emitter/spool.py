"""Spool: the file in which an emitter keeps frames that no sidecar has acknowledged yet.

In: frames of one session.
Out: the same frames, to this process or to a later one.
Never: is written or deleted by a process that does not hold its lock.

There is one file for each session. Header and records have the layout of a journal
(shared/record.py), with these values:

    SPOOL_DIR/<run_id>.<session>.spool

    segment header
      journal uuid   16   all zero: a spool belongs to no journal
      first row      u64  0
      stream table        {0: [run_id, session, source, -1]}, the one stream

    record, one for each frame, in the order of seq
      type           u8   1 (events)
      flags          u8   0
      stream         u32  0
      row            u64  the same as base_seq
      base_seq       u64  seq of the first event of the frame
      count          u16  events in the frame
      payload             the events of the frame, one MessagePack array

The emitter holds an exclusive flock on the file while it lives. A free lock means that
the emitter has ended and that any process may adopt the file and send its frames. While
the file is being made it is called `<run_id>.<session>.making`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared.files import append_whole, write_all
from shared.ids import StreamId, check_stream_id
from shared.locks import LocksUnsupported, lock
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


class SpoolUnavailable(Exception):
    """Error: the directory can't be written, or the spool is full. The frame stays in memory."""


class SpoolDamaged(Exception):
    """Error: a frame can't be read back from the spool as it was written."""


class Spool:
    """A locked spool file. Not thread-safe: the sender thread owns it."""

    def __init__(self, fd: int, path: Path, entry: StreamEntry, header_bytes: int) -> None:
        self.path = path
        self.entry = entry
        self.frame_count = 0
        """Number of frames that were appended, and not cleared."""
        self._fd = fd
        self._header_bytes = header_bytes
        self._end = os.fstat(fd).st_size

    @classmethod
    def create(cls, directory: Path, run_id: str, session: str, source: str) -> Spool:
        """Create and lock the spool of a session that has none yet.

        Raises:
            SpoolUnavailable: the directory can't be made or written.
        """
        entry = StreamEntry(run_id, session, source, -1)
        path = directory / f"{run_id}.{session}{SUFFIX}"
        # The file is complete and locked before it gets its name: no other process can
        # adopt it before that.
        making = path.with_suffix(".making")
        header = encode_segment_header(bytes(16), 0, {0: entry})
        fd = -1
        try:
            directory.mkdir(parents=True, exist_ok=True)
            fd = os.open(making, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            lock(fd)
            write_all(fd, header, 0)
            making.rename(path)
        except OSError as exc:
            if fd >= 0:
                os.close(fd)
                with contextlib.suppress(OSError):
                    making.unlink()
            raise SpoolUnavailable(f"spool {path}: {_why(exc)}") from exc
        return cls(fd, path, entry, len(header))

    @property
    def stream_id(self) -> StreamId:
        """The stream whose frames are in the file."""
        return self.entry.stream_id

    @property
    def modified_ns(self) -> int:
        """Wall time of the last write to the file, in nanoseconds."""
        return os.fstat(self._fd).st_mtime_ns

    @property
    def size(self) -> int:
        """Bytes of frames in the file."""
        return self._end - self._header_bytes

    def append(self, base_seq: int, count: int, body: bytes) -> int:
        """Write one frame behind the last; return the offset of its payload, for `load`.

        Raises:
            SpoolUnavailable: the disk refused; no part of the frame was kept.
        """
        record = encode_record(EVENTS, 0, base_seq, base_seq, count, body)
        at = self._end
        try:
            append_whole(self._fd, record, at)
        except OSError as exc:
            raise SpoolUnavailable(f"spool {self.path}: {exc.strerror}") from exc
        self._end += len(record)
        self.frame_count += 1
        return at + RECORD_HEADER_BYTES

    def load(self, offset: int, size: int) -> bytes:
        """Return the payload of size bytes that append wrote at offset.

        Raises:
            SpoolDamaged: the bytes there are not those that were written.
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
        """Yield the frames in order, each as (header, offset of its payload).

        Reads only headers, because the file may have a gigabyte. A record cut short by a
        crash at the end is skipped, and so is a damaged header with its payload.
        """
        offset, next_seq = self._header_bytes, 0
        while (found := self._next_header(offset, next_seq)) is not None:
            header, at = found
            offset = at + header.size
            if offset > self._end:
                # The last record was cut short by a crash.
                return
            yield header, at + RECORD_HEADER_BYTES
            next_seq = header.next_row

    def clear(self) -> None:
        """Forget every frame: all are acknowledged."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._header_bytes)
            self._end = self._header_bytes
            self.frame_count = 0

    def close(self, *, delete: bool) -> None:
        """Close the file; with delete, remove it first. May be called twice."""
        if self._fd < 0:
            return
        # Unlinked while still locked: no other process can adopt a file that is going away.
        if delete:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1

    def abandon(self) -> None:
        """Close the file in a forked child; otherwise the lock would outlive the parent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _next_header(self, offset: int, seq_min: int) -> tuple[RecordHeader, int] | None:
        """Return the next record header at or after offset, and its offset; None without one."""
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
        lock(fd)
        # Between open and lock its owner may have finished and unlinked it.
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
    check_stream_id(entry.stream_id)
    return entry, header.size


def _why(exc: OSError) -> str:
    """Return the text of an error; a file system without locks gets a text of its own."""
    if isinstance(exc, LocksUnsupported):
        return f"its file system can't lock files ({exc.strerror}); choose another directory"
    return exc.strerror or type(exc).__name__
