"""Streams: what is known of each session, and which subdirectories it writes to.

In: the sessions, steps and tags of a journal's rows, in order.
Out: subdirectories, a step and a tag for each value.
Never: looks at files or clocks, so every reading of a journal is laid out alike.

Every (source, session) has subdirectories of its own, so that a restart from an
earlier step leaves both curves whole. Where nothing is ever trained anew, the
sessions of a source are one stream: those of workers (thousands may come and
go), of a host's hardware, whose steps are seconds of the run, and of the sidecar.
All subdirectories of a source are numbered in one row: `rank0`, `rank0.2`,
`rank0.3`. Which of them a value goes to is the placement's.

What is remembered is bounded: the tags of the RECENT_SESSIONS last sessions of
a source and of at most TAGS_TOTAL_MAX in all, and for everything older the one
step that all tags are at or below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from telemetry.rows import Row, host_of
from telemetry.sinks.tensorboard.lastsfile import SessionChange
from telemetry.sinks.tensorboard.names import cleaned_tag
from telemetry.sinks.tensorboard.placement import LeftOut, LevelState, Placement

TAGS_TOTAL_MAX: Final = 400_000
RECENT_SESSIONS: Final = 8
SESSIONS_MAX: Final = 256
REASONS_MAX: Final = 64
NAMES_MAX: Final = 100_000
OWN: Final = "telemetry"
_SHARED: Final = re.compile(r"rank\d+\.worker\d+|hardware:.*|sidecar(:.*)?")


class StreamState(msgspec.Struct, array_like=True):
    """One stream, without its tags, as JSON can hold it."""

    number: int
    source: str
    session: str
    stem: str
    directories: list[str]
    levels: list[LevelState]
    # The time of the run at which hardware was first seen.
    first_elapsed_s: float | None = None
    # Why values were left out, as far as it was told.
    reasons: list[str] = []
    # Configuration that the HPARAMS tab has yet to be told.
    config: dict[str, Any] | None = None


class Stream:
    """One stream of values. Not thread-safe."""

    def __init__(self, state: StreamState, left_out: LeftOut) -> None:
        self.state = state
        self.placement = Placement(state.levels, left_out)
        self.kinds: dict[str, str] = {}
        # The tag of each name whose value is a number; a cache of `tag`.
        self.scalar_tags: dict[str, str] = {}

    @property
    def directory(self) -> str:
        """The subdirectory of whatever has no curve that could fall."""
        return self.state.directories[0]

    @property
    def is_shared(self) -> bool:
        """True if several sessions are this stream."""
        return not self.state.session

    def number_of(self, row: Row) -> int:
        """A number that rises from row to row: its place in its session, or in the journal."""
        return row.row if self.is_shared else row.seq

    def second_of(self, elapsed_s: float) -> int:
        """The second of the run of a sample, at whole seconds from the first one seen.

        Rounding the time of the run itself would give two samples one second, and
        leave out the next, where they come near its half.
        """
        if self.state.first_elapsed_s is None:
            self.state.first_elapsed_s = elapsed_s
        first_s = self.state.first_elapsed_s
        return int(first_s) + round(elapsed_s - first_s)

    def tag(self, name: str, kind: str) -> str:
        """The name, with the kind behind it where that tag holds another kind already.

        TensorBoard shows only the first kind of a tag.
        """
        tag = cleaned_tag(name)
        while self._kind_of(tag, kind) != kind:
            tag = f"{tag}/{kind}"
        if kind == "scalar":
            if len(self.scalar_tags) >= NAMES_MAX:
                self.scalar_tags.clear()
            self.scalar_tags[name] = tag
        elif self.kinds.get(tag) != kind:
            self.kinds[tag] = kind
        return tag

    def restored(self) -> None:
        """Take the kinds from the tags that an earlier process remembered."""
        self.kinds = self.placement.kinds()

    def fold(self) -> None:
        """Forget the tags."""
        self.placement.fold()
        self.kinds, self.scalar_tags = {}, {}
        self.state.reasons = []

    def _kind_of(self, tag: str, wanted: str) -> str:
        kind = self.kinds.get(tag)
        if kind is not None:
            return kind
        return wanted if self.placement.last_of(tag) is None else "scalar"


class StreamsState(msgspec.Struct):
    """All that Streams knows but for the tags, as JSON can hold it."""

    streams: list[StreamState] = []
    numbers: dict[str, int] = {}
    next_number: int = 0
    hardware_host: str | None = None
    left_out: LeftOut = msgspec.field(default_factory=LeftOut)


class Streams:
    """The streams of a journal. Not thread-safe."""

    def __init__(self, state: StreamsState, lasts: list[SessionChange] | None = None) -> None:
        """Go on from a state, and from what was remembered of its tags.

        Raises:
            ValueError: the two don't fit together.
        """
        self._numbers = dict(state.numbers)
        self._next_number = state.next_number
        self._hardware_host = state.hardware_host
        self.left_out = state.left_out
        self._streams = {
            (each.source, each.session): Stream(each, state.left_out) for each in state.streams
        }
        by_number = {stream.state.number: stream for stream in self._streams.values()}
        for number, change in lasts or []:
            if number in by_number:  # others were forgotten since
                by_number[number].placement.restore(change)
        for stream in self._streams.values():
            stream.restored()
        self.tags = sum(stream.placement.tags for stream in self._streams.values())
        """The number of tags that are remembered, over all streams."""

    def state(self) -> StreamsState:
        for stream in self._streams.values():
            stream.state.levels = stream.placement.levels
        states = [stream.state for stream in self._streams.values()]
        return StreamsState(
            states, self._numbers, self._next_number, self._hardware_host, self.left_out
        )

    def take_changes(self) -> list[SessionChange]:
        """Return what is new of the tags since the last call."""
        return [
            (stream.state.number, change)
            for stream in self._streams.values()
            for change in stream.placement.take_changes()
        ]

    def everything(self) -> Iterator[SessionChange]:
        """All that is known of the tags."""
        for stream in self._streams.values():
            for change in stream.placement.everything():
                yield stream.state.number, change

    def of(self, row: Row, rank0_host: str | None) -> Stream:
        """The stream of a row; its first row claims a subdirectory."""
        stream = self._streams.get((row.source, row.session))
        if stream is None:
            session = "" if _SHARED.fullmatch(row.source) else row.session
            stream = self._streams.get((row.source, session))
        return stream or self._new(row.source, session, rank0_host)

    def of_own(self, row: Row) -> Stream:
        """The stream of what the telemetry counts of itself, whoever says it."""
        return self._streams.get((OWN, "")) or self._new(OWN, "", None)

    def directory(self, stream: Stream, level: int) -> str:
        """The subdirectory of a level of a stream; the first value there claims it."""
        directories = stream.state.directories
        while len(directories) <= level:
            directories.append(self._next_directory(stream.state.stem))
        return directories[level]

    def grew(self, stream: Stream, tags: int) -> None:
        """Take note of tags that are new in a stream; beyond the bound others forget theirs."""
        self.tags += tags
        if self.tags <= TAGS_TOTAL_MAX:
            return
        for other in self._streams.values():
            if other is not stream and other.placement.tags:
                self.tags -= other.placement.tags
                other.fold()
            if self.tags <= TAGS_TOTAL_MAX // 2:
                return

    def _new(self, source: str, session: str, rank0_host: str | None) -> Stream:
        stem = self._stem(source, rank0_host)
        directories = [self._next_directory(stem)]
        state = StreamState(self._next_number, source, session, stem, directories, [])
        self._next_number += 1
        self._streams[source, session] = stream = Stream(state, self.left_out)
        self._age(source)
        return stream

    def _stem(self, source: str, rank0_host: str | None) -> str:
        """`hardware` is rank 0's host, or where nothing trains yet the first one seen."""
        host = host_of(source) if source.startswith("hardware:") else ""
        if not host:
            return source.replace(":", "-")
        if self._hardware_host is None and rank0_host in (None, host):
            self._hardware_host = host
        return "hardware" if host == self._hardware_host else f"hardware-{host}"

    def _next_directory(self, stem: str) -> str:
        # A host may be called `a.2`, like the second session of a host `a`.
        number = self._numbers.get(stem, 0) + 1
        while self._is_taken(_numbered(stem, number)):
            number += 1
        self._numbers[stem] = number
        return _numbered(stem, number)

    def _is_taken(self, directory: str) -> bool:
        stem, _, number = directory.rpartition(".")
        return directory in self._numbers or (
            number.isdigit() and int(number) <= self._numbers.get(stem, 0)
        )

    def _age(self, source: str) -> None:
        """Remember less of a source's older sessions."""
        streams = [each for each in self._streams.values() if each.state.source == source]
        for stream in streams[:-RECENT_SESSIONS]:
            if stream.placement.tags:
                self.tags -= stream.placement.tags
                stream.fold()
        for stream in streams[:-SESSIONS_MAX]:
            del self._streams[stream.state.source, stream.state.session]


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}.{number}"
