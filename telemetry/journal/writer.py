"""Writer: turns frames into records of a journal, and makes them durable in order.

In: frames of events with their stream and sequence numbers.
Out: row numbers; after `sync` the rows are on disk.
Never: decodes an event, deletes anything, or writes after a failed sync.

Not thread-safe: the journal thread owns it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path
from typing import Final

from shared.closing import Closing
from shared.files import append_whole, make_directory, sync_directory, write_all
from shared.ids import StreamId
from shared.record import (
    EVENTS,
    LATE,
    PAYLOAD_MAX_BYTES,
    STREAMS,
    encode_record,
    encode_segment_header,
    encode_table,
)
from telemetry.journal.closed import append_closed
from telemetry.journal.journal_lock import lock_journal
from telemetry.journal.layout import MARK_NAME, Mark, encode_mark, segments
from telemetry.journal.numbers import StreamNumbers
from telemetry.journal.recovery import Recovered, recover
from telemetry.journal.segment import SegmentLeft, begin_segment

SEGMENT_MAX_BYTES: Final = 64 * 1024 * 1024
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)


class JournalFull(Exception):
    """Error: the disk is full. Pending records are not durable, but are kept in memory."""


class JournalFault(Exception):
    """Error: the disk failed. The journal must be opened again before it takes more."""


class JournalWriter(Closing):
    """The one writer of a journal, from recovery to close."""

    def __init__(self, directory: Path, segment_max_bytes: int = SEGMENT_MAX_BYTES) -> None:
        """Open or create the journal, and recover it after a crash.

        Raises:
            JournalLocked: another process writes it.
            JournalFull: there is no room to begin a segment.
            JournalFault: the disk fails.
            OSError: the directory can't be made, read or written.
        """
        make_directory(directory)
        self.directory = directory
        self.pending_bytes = 0
        self._segment_max_bytes = segment_max_bytes
        self._lock_fd = lock_journal(directory)
        self._fd = self._mark_fd = -1
        self._segment = self._offset = self._closed_size = 0
        self._next_row = self._durable_row = 0
        self._numbers = StreamNumbers({}, {}, 0)
        self._is_faulty = False
        self._is_published = False
        self._pending: list[bytes] = []
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

    def appended_seq(self, stream: StreamId) -> int:
        """Return the seq of the last appended event of a stream, -1 before the first."""
        return self._numbers.appended_seq(stream)

    def durable_seq(self, stream: StreamId) -> int:
        """Return the seq of the last event of a stream that is on disk, -1 before the first."""
        return self._numbers.durable_seq(stream)

    def end_stream(self, stream: StreamId) -> None:
        """Record that a stream has ended, so that the next segment need not name it."""
        self._numbers.end(stream)

    def append(
        self,
        stream: StreamId,
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
        number, is_unnamed = self._numbers.number_of(stream)
        if is_unnamed:
            self._announce(number)
        row = self._next_row
        flags = LATE if is_late else 0
        self._push(encode_record(EVENTS, number, row, base_seq, count, payload, flags))
        self._next_row = row + count
        self._numbers.appended(number, base_seq + count - 1)
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
            if self._offset >= self._segment_max_bytes:
                # If there is no room for a new segment, the old one keeps growing.
                with contextlib.suppress(JournalFull):
                    self._start_segment()
        if not self._is_published:
            self._publish()

    def close(self) -> None:
        """Close the files; unsynced records are lost. May be called twice."""
        fds = (self._fd, self._mark_fd, self._lock_fd)
        self._fd = self._mark_fd = self._lock_fd = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def _resume(self, recovered: Recovered) -> None:
        """Continue at the recovered end of the journal, or in a new segment."""
        # 1. Take over rows and streams from recovery.
        self._mark_fd = os.open(
            self.directory / MARK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        self._uuid = recovered.journal_uuid or uuid.uuid4().bytes
        self._next_row = self._durable_row = recovered.next_row
        self._closed_size = recovered.closed_size
        self._numbers = StreamNumbers(recovered.streams, recovered.closed, recovered.next_stream)
        # 2. Sync what recovery accepted: it may never have been synced, and everything
        #    written from here on relies on it.
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
        #    never promised. Later marks need no sync, because an older mark stays true.
        self._fdatasync(self._mark_fd)
        sync_directory(self.directory)

    # --- records in memory

    def _announce(self, number: int) -> None:
        """Append the table record of a stream to the segment that is being written."""
        table = encode_table({number: self._numbers.entry(number)})
        # Written twice: with a bad bit in a single copy, all records of the stream are lost.
        for _ in range(2):
            self._push(encode_record(STREAMS, number, self._next_row, 0, 0, table))

    def _push(self, record: bytes) -> None:
        self._pending.append(record)
        self.pending_bytes += len(record)

    # --- records on disk

    def _sync_pending(self) -> None:
        # 1. Write. On a full disk nothing of it is left, and all stays pending: the next
        #    write begins at the same offset.
        data = b"".join(self._pending)
        try:
            append_whole(self._fd, data, self._offset)
        except OSError as exc:
            raise self._failure(exc, NO_ROOM) from exc
        # 2. Sync, before any number says that these rows are on disk.
        self._fdatasync(self._fd)
        # 3. Move on; the mark is published by the caller, with the place of a new segment.
        self._offset += len(data)
        self._pending.clear()
        self.pending_bytes = 0
        self._durable_row = self._next_row
        self._numbers.synced()
        self._is_published = False

    def _start_segment(self) -> None:
        """Begin the next segment; its file is durable before anything refers to it."""
        # 1. Save the streams that have ended: the header below does not name them.
        closed = self._close_ended()
        header = encode_segment_header(self._uuid, self._durable_row, self._numbers.table(closed))
        # 2. Make the file.
        try:
            fd = begin_segment(self.directory, self._durable_row, header)
        except SegmentLeft as exc:
            self._is_faulty = True
            raise JournalFault(str(exc)) from exc
        except OSError as exc:
            raise self._failure(exc, NO_ROOM + NO_DESCRIPTOR) from exc
        # 3. Go over to it.
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._segment, self._offset = fd, self._durable_row, len(header)
        self._numbers.begin_segment(closed)

    def _close_ended(self) -> list[int]:
        """Save the streams that have ended to the closed file, and return their numbers."""
        ended = self._numbers.ended()
        if not ended:
            return []
        try:
            self._closed_size = append_closed(self.directory, self._closed_size, ended)
        except OSError as exc:
            if exc.errno not in NO_ROOM + NO_DESCRIPTOR:
                raise self._failure(exc) from exc
            return []  # no room: the next header names them once more
        return list(ended)

    def _publish(self) -> None:
        """Write the durable mark. If the disk is full, the next sync tries again."""
        mark = Mark(self._segment, self._offset, self._durable_row)
        try:
            write_all(self._mark_fd, encode_mark(mark), 0)
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                raise self._failure(exc) from exc
            return
        self._is_published = True

    def _sync_file(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._fdatasync(fd)
        finally:
            os.close(fd)

    def _fdatasync(self, fd: int) -> None:
        try:
            os.fdatasync(fd)
        except OSError as exc:
            # The kernel may have dropped the dirty pages: a second fdatasync of this
            # descriptor would succeed and mean nothing.
            raise self._failure(exc) from exc

    def _failure(self, exc: OSError, temporary: tuple[int, ...] = ()) -> JournalFull | JournalFault:
        """Return the error to raise: JournalFull for a temporary errno, else JournalFault."""
        text = f"{self.directory}: {exc.strerror}"
        if exc.errno in temporary:
            return JournalFull(text)
        self._is_faulty = True
        return JournalFault(text)
