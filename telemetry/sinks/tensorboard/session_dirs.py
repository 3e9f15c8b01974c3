"""Streams: the state of each session of a journal, and its subdirectories.

In: the sessions, steps and tags of a journal's rows, in order.
Out: subdirectories, a step and a tag for each value.
Never: looks at files or clocks, so that reading a journal again gives the same layout.

Every (source, session) has subdirectories of its own, so that a restart from an
earlier step leaves both curves whole. Some sources never train a step again, and all
their sessions are one stream: workers (thousands may come and go), a host's hardware,
whose steps are seconds of the run, and the sidecar. The subdirectories of a source are
numbered together: `rank0`, `rank0.2`, `rank0.3`. The placement chooses one of them for
each value.

The memory is bounded: only the tags of the last RECENT_SESSIONS sessions of a source are
kept, and at most `Bounds.tags_in_all` in all. For everything older one step is kept, which no
tag is above.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from shared.ids import host_of
from telemetry.journal.rows import Row
from telemetry.sinks.tensorboard.bounds import BOUNDS, Bounds
from telemetry.sinks.tensorboard.lasts_file import SessionChange
from telemetry.sinks.tensorboard.names import cleaned_tag
from telemetry.sinks.tensorboard.placement import LeftOut, LevelState, Placement

RECENT_SESSIONS: Final = 8
SESSIONS_MAX: Final = 256
REASONS_MAX: Final = 64
NAMES_MAX: Final = 100_000
OWN: Final = "telemetry"
_SHARED: Final = re.compile(r"rank\d+\.worker\d+|hardware:.*|sidecar(:.*)?")


class StreamState(msgspec.Struct, array_like=True):
    """State of one stream, without its tags, as JSON can hold it."""

    number: int
    source: str
    session: str
    stem: str
    directories: list[str]
    levels: list[LevelState]
    # The time of the run at which hardware was first seen.
    first_elapsed_s: float | None = None
    # Reasons for which a message "left out" was written already.
    reasons: list[str] = []
    # Configuration so far; None once the line of the HPARAMS tab is written.
    config: dict[str, Any] | None = None


class Stream:
    """A stream of values: one session, or all sessions of a shared source. Not thread-safe."""

    def __init__(self, state: StreamState, left_out: LeftOut, bounds: Bounds = BOUNDS) -> None:
        self.state = state
        self.placement = Placement(state.levels, left_out, bounds)
        self.kinds: dict[str, str] = {}
        # The tag of each name whose value is a number; a cache of `tag`.
        self.scalar_tags: dict[str, str] = {}

    @property
    def directory(self) -> str:
        """First subdirectory, for texts and other entries whose steps never go back."""
        return self.state.directories[0]

    @property
    def is_shared(self) -> bool:
        """True if the stream holds several sessions of its source."""
        return not self.state.session

    def number_of(self, row: Row) -> int:
        """Return a number that rises from row to row: the seq, or the row in a shared stream."""
        return row.row if self.is_shared else row.seq

    def second_of(self, elapsed_s: float) -> int:
        """Return the second of the run of a sample, in whole seconds from the first sample.

        Rounding the run's time itself is not enough: samples near half a second could get
        the same second twice, and the next second none.
        """
        if self.state.first_elapsed_s is None:
            self.state.first_elapsed_s = elapsed_s
        first_s = self.state.first_elapsed_s
        return int(first_s) + round(elapsed_s - first_s)

    def tag(self, name: str, kind: str) -> str:
        """Return the tag for a name; with the kind appended if the tag holds another kind.

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
        """Set the kinds of the tags that an earlier process stored."""
        self.kinds = self.placement.kinds()

    def fold(self) -> None:
        """Forget all tags of the stream."""
        self.placement.fold()
        self.kinds, self.scalar_tags = {}, {}
        self.state.reasons = []

    def _kind_of(self, tag: str, wanted: str) -> str:
        kind = self.kinds.get(tag)
        if kind is not None:
            return kind
        return wanted if self.placement.last_of(tag) is None else "scalar"


class StreamsState(msgspec.Struct):
    """State of Streams without the tags, as JSON can hold it."""

    streams: list[StreamState] = []
    numbers: dict[str, int] = {}
    next_number: int = 0
    hardware_host: str | None = None
    left_out: LeftOut = msgspec.field(default_factory=LeftOut)


class Streams:
    """All streams of a journal. Not thread-safe."""

    def __init__(
        self,
        state: StreamsState,
        lasts: list[SessionChange] | None = None,
        bounds: Bounds = BOUNDS,
    ) -> None:
        """Continue from a state and the last steps stored with it.

        Raises:
            ValueError: the two do not belong together.
        """
        self._bounds = bounds
        self._numbers = dict(state.numbers)
        self._next_number = state.next_number
        self._hardware_host = state.hardware_host
        self.left_out = state.left_out
        self._streams = {
            (each.source, each.session): Stream(each, state.left_out, bounds)
            for each in state.streams
        }
        by_number = {stream.state.number: stream for stream in self._streams.values()}
        for number, change in lasts or []:
            if number in by_number:  # others were forgotten since
                by_number[number].placement.restore(change)
        for stream in self._streams.values():
            stream.restored()
        self.tags = sum(stream.placement.tags for stream in self._streams.values())
        """Number of tags that are remembered, over all streams."""

    def state(self) -> StreamsState:
        for stream in self._streams.values():
            stream.state.levels = stream.placement.levels
        states = [stream.state for stream in self._streams.values()]
        return StreamsState(
            states, self._numbers, self._next_number, self._hardware_host, self.left_out
        )

    def take_changes(self) -> list[SessionChange]:
        """Return the changes of tags since the last call."""
        return [
            (stream.state.number, change)
            for stream in self._streams.values()
            for change in stream.placement.take_changes()
        ]

    def everything(self) -> Iterator[SessionChange]:
        """Yield everything that is remembered of the tags, as changes."""
        for stream in self._streams.values():
            for change in stream.placement.everything():
                yield stream.state.number, change

    def of(self, row: Row, rank0_host: str | None) -> Stream:
        """Return the stream of a row; the first row of a stream makes it, with a subdirectory."""
        stream = self._streams.get((row.source, row.session))
        if stream is None:
            session = "" if _SHARED.fullmatch(row.source) else row.session
            stream = self._streams.get((row.source, session))
        return stream or self._new(row.source, session, rank0_host)

    def of_own(self, row: Row) -> Stream:
        """Return the stream of the telemetry's own counts, from any source."""
        return self._streams.get((OWN, "")) or self._new(OWN, "", None)

    def directory(self, stream: Stream, level: int) -> str:
        """Return the subdirectory of a level of a stream, and assign one at its first value."""
        directories = stream.state.directories
        while len(directories) <= level:
            directories.append(self._next_directory(stream.state.stem))
        return directories[level]

    def grew(self, stream: Stream, tags: int) -> None:
        """Count new tags of a stream; beyond the bound other streams forget their tags."""
        self.tags += tags
        if self.tags <= self._bounds.tags_in_all:
            return
        for other in self._streams.values():
            if other is not stream and other.placement.tags:
                self.tags -= other.placement.tags
                other.fold()
            if self.tags <= self._bounds.tags_in_all // 2:
                return

    def _new(self, source: str, session: str, rank0_host: str | None) -> Stream:
        stem = self._stem(source, rank0_host)
        directories = [self._next_directory(stem)]
        state = StreamState(self._next_number, source, session, stem, directories, [])
        self._next_number += 1
        self._streams[source, session] = stream = Stream(state, self.left_out, self._bounds)
        self._age(source)
        return stream

    def _stem(self, source: str, rank0_host: str | None) -> str:
        """Return the base name of a source's subdirectories.

        `hardware` is for rank 0's host, or for the first host seen if nothing trains yet.
        """
        host = host_of(source)
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
        """Forget the tags of a source's older sessions, and the oldest sessions themselves."""
        streams = [each for each in self._streams.values() if each.state.source == source]
        for stream in streams[:-RECENT_SESSIONS]:
            if stream.placement.tags:
                self.tags -= stream.placement.tags
                stream.fold()
        for stream in streams[:-SESSIONS_MAX]:
            del self._streams[stream.state.source, stream.state.session]


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}.{number}"
