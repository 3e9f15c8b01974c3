"""Numbers: the streams of a journal, by the numbers under which its records name them.

In: streams, as their events are appended, made durable, and as they end.
Out: the number of each stream, its last seqs, and its entry for the tables of the journal.
Never: gives a number twice, or forgets a stream that has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shared.ids import StreamId
from shared.record import StreamEntry


@dataclass
class _Stream:
    id: StreamId
    appended_seq: int = -1
    durable_seq: int = -1


class StreamNumbers:
    """The streams of one journal. Not thread-safe: the owner of its writer owns it."""

    def __init__(
        self,
        listed: dict[int, StreamEntry],
        closed: dict[int, StreamEntry],
        next_number: int,
    ) -> None:
        """Take over the streams of a journal that was written before.

        listed: those that the last segment names. closed: those that only the closed file names.
        """
        self._streams = {
            number: _Stream(entry.stream_id, entry.durable_seq, entry.durable_seq)
            for number, entry in (closed | listed).items()
        }
        self._numbers = {stream.id: number for number, stream in self._streams.items()}
        self._next = next_number
        self._unsynced: set[int] = set()
        """Numbers of the streams with events that are not on disk yet."""
        self._ended: set[int] = set()
        """Numbers of the streams that have ended; the next segment's header need not name them."""
        self._unlisted = set(closed)
        """Numbers of the ended streams that the segment being written does not name."""

    def appended_seq(self, stream: StreamId) -> int:
        """Return the seq of the last appended event of a stream, -1 before the first."""
        number = self._numbers.get(stream)
        return -1 if number is None else self._streams[number].appended_seq

    def durable_seq(self, stream: StreamId) -> int:
        """Return the seq of the last event of a stream that is on disk, -1 before the first."""
        number = self._numbers.get(stream)
        return -1 if number is None else self._streams[number].durable_seq

    def number_of(self, stream: StreamId) -> tuple[int, bool]:
        """Return the number of a stream, and True if the segment has to name the stream first."""
        number = self._numbers.get(stream)
        is_new = number is None
        if number is None:
            number = self._numbers[stream] = self._next
            self._streams[number] = _Stream(stream)
            self._next += 1
        # A stream that had ended, and sends again, is named again.
        is_unlisted = number in self._unlisted
        self._unlisted.discard(number)
        self._ended.discard(number)
        return number, is_new or is_unlisted

    def entry(self, number: int) -> StreamEntry:
        """Return the entry of a stream for a table of the journal."""
        stream = self._streams[number]
        return StreamEntry(*stream.id, stream.durable_seq)

    def appended(self, number: int, seq: int) -> None:
        """Note that the events of a stream were appended up to seq."""
        self._streams[number].appended_seq = seq
        self._unsynced.add(number)

    def synced(self) -> None:
        """Note that all appended events are on disk."""
        for number in self._unsynced:
            self._streams[number].durable_seq = self._streams[number].appended_seq
        self._unsynced.clear()

    def end(self, stream: StreamId) -> None:
        """Note that a stream has ended, so that the next segment need not name it."""
        number = self._numbers.get(stream)
        if number is not None and number not in self._unlisted:
            self._ended.add(number)

    def ended(self) -> dict[int, StreamEntry]:
        """Return the entries of the ended streams that the closed file does not name yet."""
        return {number: self.entry(number) for number in sorted(self._ended)}

    def table(self, closed: Iterable[int]) -> dict[int, StreamEntry]:
        """Return the table of the next segment: all streams but those in the closed file.

        closed: numbers that the closed file has got since the last segment began.
        """
        left_out = self._unlisted.union(closed)
        return {number: self.entry(number) for number in self._streams if number not in left_out}

    def begin_segment(self, closed: Iterable[int]) -> None:
        """Note that a segment with that table has begun."""
        self._unlisted.update(closed)
        self._ended -= self._unlisted
