"""Writer: turns frames into records of a journal, and makes them durable in order.

In: frames of events with their stream and sequence numbers.
Out: row numbers; after `sync` the rows are on disk.
Never: decodes an event, deletes anything, or writes after a failed sync.

Not thread-safe: the ingest thread owns it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from shared.record import (
    EVENTS,
    LATE,
    PAYLOAD_MAX_BYTES,
    STREAMS,
    StreamEntry,
    encode_record,
    encode_segment_header,
    encode_table,
)
from telemetry.journal.closed import append_closed
from telemetry.journal.layout import (
    MARK_NAME,
    Mark,
    encode_mark,
    make_durably,
    segment_path,
    segments,
    sync_directory,
)
from telemetry.journal.recovery import Recovered, recover

SEGMENT_MAX_BYTES: Final = 64 * 1024 * 1024
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)
LOCK_TRIES: Final = 5
"""A reader that checks for a writer holds the lock for a moment, so one try is not enough."""
LOCK_RETRY_S: Final = 0.01


class JournalLocked(Exception):
    """Error: another process writes this journal."""


class JournalFull(Exception):
    """Error: the disk is full. Pending records are not durable, but are kept in memory."""


class JournalFault(Exception):
    """Error: the disk failed. The journal must be opened again before it takes more."""


@dataclass
class _Stream:
    run_id: str
    session: str
    source: str
    appended_seq: int = -1
    durable_seq: int = -1


class JournalWriter:
    """The one writer of a journal, from recovery to close."""

    def __init__(self, directory: Path, segment_max_bytes: int = SEGMENT_MAX_BYTES) -> None:
        """Open or create the journal, and recover it after a crash.

        Raises:
            JournalLocked: another process writes it.
            JournalFull: there is no room to begin a segment.
            JournalFault: the disk fails.
            OSError: the directory can't be made, read or written.
        """
        # The run's directory may exist without its name being on disk yet.
        make_durably(directory.parent)
        make_durably(directory)
        self.directory = directory
        self.pending_bytes = 0
        self._segment_max_bytes = segment_max_bytes
        self._lock_fd = _locked(directory)
        self._fd = self._mark_fd = -1
        self._segment = self._offset = 0
        self._next_row = self._durable_row = 0
        self._next_stream = 0
        self._is_faulty = False
        self._is_published = False
        self._pending: list[bytes] = []
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._streams: dict[int, _Stream] = {}
        self._unsynced: set[int] = set()
        """Numbers of the streams with events that are not on disk yet."""
        self._ended: set[int] = set()
        """Numbers of the streams that have ended; the next segment's header need not name them."""
        self._unlisted: set[int] = set()
        """Numbers of the ended streams that the segment being written does not name."""
        self._closed_size = 0
        try:
            self.recovered = recover(directory)
            self._resume(self.recovered)
        except BaseException:
            self.close()
            raise

    @property
    def next_row(self) -> int:
        """Row number that the next appended event gets."""
        return self._next_row

    @property
    def durable_row(self) -> int:
        """First row that is not on disk yet; all rows before it are."""
        return self._durable_row

    def appended_seq(self, run_id: str, session: str, source: str) -> int:
        """Return the seq of the last appended event of a stream, -1 before the first."""
        number = self._numbers.get((run_id, session, source))
        return -1 if number is None else self._streams[number].appended_seq

    def durable_seq(self, run_id: str, session: str, source: str) -> int:
        """Return the seq of the last event of a stream that is on disk, -1 before the first."""
        number = self._numbers.get((run_id, session, source))
        return -1 if number is None else self._streams[number].durable_seq

    def end_stream(self, run_id: str, session: str, source: str) -> None:
        """Record that a stream has ended, so that the next segment need not name it."""
        number = self._numbers.get((run_id, session, source))
        if number is not None and number not in self._unlisted:
            self._ended.add(number)

    def append(
        self,
        run_id: str,
        session: str,
        source: str,
        base_seq: int,
        count: int,
        payload: bytes,
        *,
        is_late: bool = False,
    ) -> int:
        """Append a frame in memory, and return the row of its first event.

        is_late: the session has ended, and another process sends the events it left.
        The caller has to append the frames of one stream in the order of their seq.

        Raises:
            ValueError: more, or fewer, events or bytes than a record may have.
        """
        if not 0 < count < 1 << 16 or len(payload) > PAYLOAD_MAX_BYTES:
            raise ValueError(f"frame of {count} events in {len(payload)} bytes")
        number = self._number_of(run_id, session, source)
        row = self._next_row
        flags = LATE if is_late else 0
        self._push(encode_record(EVENTS, number, row, base_seq, count, payload, flags))
        self._next_row = row + count
        self._streams[number].appended_seq = base_seq + count - 1
        self._unsynced.add(number)
        return row

    def sync(self) -> None:
        """Write the pending records, make them durable, and publish the new mark.

        Raises:
            JournalFull: nothing changed; try again when there is room.
            JournalFault: pending records must not be acknowledged, now or later.
        """
        if self._is_faulty:
            raise JournalFault(f"{self.directory}: closed after a failed sync")
        if self._pending:
            self._sync_pending()
            if self._is_segment_full:
                # If there is no room for a new segment, the old one keeps growing.
                with contextlib.suppress(JournalFull):
                    self._start_segment()
        if not self._is_published:
            self._publish()

    def _sync_pending(self) -> None:
        data = b"".join(self._pending)
        self._write(data)
        self._fdatasync(self._fd)
        self._offset += len(data)
        self._pending.clear()
        self.pending_bytes = 0
        self._durable_row = self._next_row
        for number in self._unsynced:
            self._streams[number].durable_seq = self._streams[number].appended_seq
        self._unsynced.clear()
        self._is_published = False

    def close(self) -> None:
        """Close the files; unsynced records are lost. May be called twice."""
        fds = (self._fd, self._mark_fd, self._lock_fd)
        self._fd = self._mark_fd = self._lock_fd = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _resume(self, recovered: Recovered) -> None:
        """Continue at the recovered end of the journal, or in a new segment."""
        # 1. Take over rows and streams from recovery.
        self._mark_fd = os.open(
            self.directory / MARK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        self._uuid = recovered.journal_uuid or uuid.uuid4().bytes
        self._next_row = self._durable_row = recovered.next_row
        self._unlisted = set(recovered.closed)
        self._closed_size = recovered.closed_size
        for number, entry in (recovered.closed | recovered.streams).items():
            self._streams[number] = _Stream(
                entry.run_id, entry.session, entry.source, entry.durable_seq, entry.durable_seq
            )
            self._numbers[entry.run_id, entry.session, entry.source] = number
        self._next_stream = recovered.next_stream
        # 2. Sync what recovery accepted: it may never have been synced, and everything
        # written from here on relies on it.
        for segment in segments(self.directory)[-2:]:
            self._sync_file(segment.path)
        # 3. Open the segment to continue in.
        if recovered.segment is None:
            self._start_segment()
        else:
            self._segment = recovered.segment.first_row
            self._offset = recovered.offset
            self._fd = os.open(recovered.segment.path, os.O_WRONLY | os.O_CLOEXEC)
        self._publish()
        # 4. Sync the mark this once: damage behind it then belongs to a write that was
        # never promised. Later marks need no sync, because an older mark stays true.
        self._fdatasync(self._mark_fd)
        sync_directory(self.directory)

    @property
    def _is_segment_full(self) -> bool:
        """True if the segment is large enough, and has a row: segments are named by their first."""
        is_large = self._offset >= self._segment_max_bytes
        return is_large and self._durable_row > self._segment

    def _sync_file(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._fdatasync(fd)
        finally:
            os.close(fd)

    def _number_of(self, run_id: str, session: str, source: str) -> int:
        key = (run_id, session, source)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._next_stream
            self._next_stream += 1
            self._streams[number] = _Stream(run_id, session, source)
            self._announce(number)
        elif number in self._unlisted:
            # The stream had ended, and sends again.
            self._unlisted.discard(number)
            self._announce(number)
        self._ended.discard(number)
        return number

    def _announce(self, number: int) -> None:
        """Append the table record of a stream to the segment that is being written."""
        table = encode_table({number: self._entry(number)})
        # Written twice: with a bad bit in a single copy, all records of the stream are lost.
        for _ in range(2):
            self._push(encode_record(STREAMS, number, self._next_row, 0, 0, table))

    def _entry(self, number: int) -> StreamEntry:
        stream = self._streams[number]
        return StreamEntry(stream.run_id, stream.session, stream.source, stream.durable_seq)

    def _push(self, record: bytes) -> None:
        self._pending.append(record)
        self.pending_bytes += len(record)

    def _write(self, data: bytes) -> None:
        try:
            _write_all(self._fd, data, self._offset)
        except OSError as exc:
            # Remove a partly written record: the next write begins at the same offset.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._offset)
            if exc.errno in NO_ROOM:
                raise JournalFull(f"{self.directory}: {exc.strerror}") from exc
            raise self._fault(exc) from exc

    def _fdatasync(self, fd: int) -> None:
        try:
            os.fdatasync(fd)
        except OSError as exc:
            # The kernel may have dropped the dirty pages: a second fdatasync of this
            # descriptor would succeed and mean nothing.
            raise self._fault(exc) from exc

    def _fault(self, exc: OSError) -> JournalFault:
        self._is_faulty = True
        return JournalFault(f"{self.directory}: {exc.strerror}")

    def _start_segment(self) -> None:
        """Begin the next segment; its file is durable before anything refers to it."""
        retired = self._unlisted | self._retire()
        table = {n: self._entry(n) for n in self._streams if n not in retired}
        header = encode_segment_header(self._uuid, self._durable_row, table)
        path = segment_path(self.directory, self._durable_row)
        # The header is on disk before the file gets its name, so that recovery never finds
        # a half-made segment.
        making = path.with_suffix(".making")
        fd = -1
        try:
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            fd = os.open(making, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            _write_all(fd, header, 0)
            os.fdatasync(fd)
            making.rename(path)
            sync_directory(self.directory)
        except OSError as exc:
            self._unmake(fd, making, path)
            if exc.errno in NO_ROOM + NO_DESCRIPTOR:
                raise JournalFull(f"{path}: {exc.strerror}") from exc
            raise self._fault(exc) from exc
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._segment, self._offset = fd, self._durable_row, len(header)
        self._unlisted = retired
        self._ended -= retired
        self._is_published = False

    def _retire(self) -> set[int]:
        """Save the ended streams to the closed file; return those that headers need not name."""
        if not self._ended:
            return set()
        entries = {number: self._entry(number) for number in sorted(self._ended)}
        try:
            self._closed_size = append_closed(self.directory, self._closed_size, entries)
        except OSError as exc:
            if exc.errno not in NO_ROOM + NO_DESCRIPTOR:
                raise self._fault(exc) from exc
            return set()  # no room: the next header names them once more
        return set(entries)

    def _unmake(self, fd: int, *paths: Path) -> None:
        """Remove the files of a segment that could not be begun."""
        if fd < 0:
            return
        os.close(fd)
        try:
            for path in paths:
                path.unlink(missing_ok=True)
            sync_directory(self.directory)
        except OSError as exc:
            raise self._fault(exc) from exc

    def _publish(self) -> None:
        """Write the durable mark. If the disk is full, the next sync tries again."""
        mark = Mark(self._segment, self._offset, self._durable_row)
        try:
            _write_all(self._mark_fd, encode_mark(mark), 0)
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                raise self._fault(exc) from exc
            return
        self._is_published = True


def _write_all(fd: int, data: bytes, at: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], at + written)


def _locked(directory: Path) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tries = 1
        while not _has_lock(fd):
            if tries == LOCK_TRIES:
                raise JournalLocked(f"{directory} is being written by another process")
            tries += 1
            time.sleep(LOCK_RETRY_S)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _has_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
