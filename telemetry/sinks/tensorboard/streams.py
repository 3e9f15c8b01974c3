"""Streams: what is known of each session, and which subdirectory it writes to.

In: the sessions, steps and tags of a journal's rows, in order.
Out: a subdirectory, a step and a tag for each value.
Never: looks at files or clocks, so every reading of a journal is laid out alike.

TensorBoard's fast loader takes a subdirectory for one curve a tag: a step that
goes back wipes what lay behind it, and a step that repeats replaces. So every
(source, session) has a subdirectory of its own, and goes on in a further one
when the step of a tag does not rise. All subdirectories of a source are
numbered in one row: `rank0`, `rank0.2`, `rank0.3`.

What is remembered is bounded: the steps of TAGS_MAX tags for each of the
RECENT_SESSIONS last sessions of a source, and for everything older the one
step above which all tags rise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any, Final

import msgspec

from shared.events import HARDWARE
from telemetry.rows import Row, host_of

TAGS_MAX: Final = 10_000
RECENT_SESSIONS: Final = 8
SESSIONS_MAX: Final = 256
DIRECTORIES_MAX: Final = 64
NO_STEP: Final = -(2**63)


class Stream(msgspec.Struct):
    """One session of one source. Not thread-safe."""

    source: str
    session: str
    stem: str
    directory: str
    directories: int = 1
    first_hardware_seq: int | None = None
    # Steps in the present subdirectory: the highest, the last of each tag, and
    # the highest of those tags that were forgotten.
    highest: int = NO_STEP
    floor: int = NO_STEP
    steps: dict[str, int] = {}
    # The last value of each text that is a metric; and the tags that hold no scalars.
    texts: dict[str, str] = {}
    kinds: dict[str, str] = {}
    # Configuration that the HPARAMS tab has yet to be told.
    config: dict[str, Any] | None = None

    @property
    def counts_rows(self) -> bool:
        """Whether its steps are no steps: they failed to rise too often.

        Its last subdirectory numbers points by their seq, which always rises.
        So a producer with one step for everything makes neither a subdirectory
        a point nor points that hide each other.
        """
        return self.directories >= DIRECTORIES_MAX

    def step_of(self, seq: int, kind: str, step: int | None) -> int:
        """The training step, a sample number for hardware, or the seq."""
        if kind == HARDWARE:
            if self.first_hardware_seq is None:
                self.first_hardware_seq = seq
            return seq - self.first_hardware_seq
        return seq if step is None else step

    def tag(self, name: str, kind: str) -> str:
        """The name, with the kind behind it where that tag holds another kind already.

        TensorBoard shows only the first kind of a tag.
        """
        while self.kinds.get(name, "scalar" if name in self.steps else kind) != kind:
            name = f"{name}/{kind}"
        if kind != "scalar":
            if len(self.kinds) >= TAGS_MAX:
                self.kinds.clear()
            self.kinds[name] = kind
        return name

    def has_new(self, tag: str, text: str) -> bool:
        """Whether text differs from the last one of the tag; remembers it."""
        short = text if len(text) <= 64 else hashlib.sha256(text.encode()).hexdigest()
        is_new = self.texts.get(tag) != short
        self.texts[tag] = short
        return is_new

    def rises(self, step: int, tags: Collection[str]) -> bool:
        """Whether step is above the last one of every tag."""
        if step > self.highest:
            return True
        last, floor = self.steps.get, self.floor
        return all(last(tag, floor) < step for tag in tags)

    def take(self, step: int, tags: Collection[str]) -> None:
        """Remember step as the last one of every tag."""
        self.highest = max(self.highest, step)
        self.steps.update(dict.fromkeys(tags, step))
        if len(self.steps) > TAGS_MAX:
            self._forget(list(self.steps)[: TAGS_MAX // 2])

    def move(self, directory: str) -> None:
        """Go on in a further subdirectory, where nothing stands yet."""
        self.directory = directory
        self.directories += 1
        self.highest = self.floor = NO_STEP
        self.steps, self.texts, self.kinds = {}, {}, {}

    def fold(self) -> None:
        """Forget the tags: from here on a step rises above all of them or none."""
        self._forget(list(self.steps))
        self.kinds = {}

    def _forget(self, tags: list[str]) -> None:
        for tag in tags:
            self.floor = max(self.floor, self.steps.pop(tag))
            self.texts.pop(tag, None)


class StreamsState(msgspec.Struct):
    """All that Streams knows, as JSON can hold it."""

    streams: list[Stream] = []
    numbers: dict[str, int] = {}
    hardware_host: str | None = None


class Streams:
    """The sessions of a journal. Not thread-safe."""

    def __init__(self, state: StreamsState) -> None:
        self._streams = {(stream.source, stream.session): stream for stream in state.streams}
        self._numbers = state.numbers
        self._hardware_host = state.hardware_host

    def state(self) -> StreamsState:
        return StreamsState(list(self._streams.values()), self._numbers, self._hardware_host)

    def of(self, row: Row, rank0_host: str | None) -> Stream:
        """The stream of a row; its first row claims a subdirectory."""
        stream = self._streams.get((row.source, row.session))
        if stream is None:
            stem = self._stem(row.source, rank0_host)
            stream = Stream(row.source, row.session, stem, self._next_directory(stem))
            self._streams[row.source, row.session] = stream
            self._age(row.source)
        return stream

    def place(self, stream: Stream, seq: int, step: int, tags: Collection[str]) -> int:
        """Make room for tags at step in the stream's subdirectory; returns the step to use."""
        if not stream.counts_rows and not stream.rises(step, tags):
            stream.move(self._next_directory(stream.stem))
        if stream.counts_rows:
            step = seq
        stream.take(step, tags)
        return step

    def _stem(self, source: str, rank0_host: str | None) -> str:
        """`hardware` is rank 0's host, or where nothing trains yet the first one seen."""
        host = host_of(source)
        if not host:
            return source
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
        streams = [stream for stream in self._streams.values() if stream.source == source]
        for stream in streams[:-RECENT_SESSIONS]:
            stream.fold()
        for stream in streams[:-SESSIONS_MAX]:
            del self._streams[stream.source, stream.session]


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}.{number}"
