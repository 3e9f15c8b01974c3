"""The state between two rows of a journal that is read into columns, and parts of chunks.

In: nothing.
Out: plain values that MessagePack can hold, so that columns can be built on from a kept chunk.
Never: numpy.
"""

from __future__ import annotations

import msgspec

from telemetry.journal.rows import RunContext


class RawMark(msgspec.Struct, frozen=True, array_like=True):
    """Something that happened at a moment, as it was recorded: an alert's end is one of its own.

    subject: what tells an alert from others of its source, and its end from those of others.
    """

    kind: str
    wall_ns: int
    step: int | None
    text: str
    level: str
    source: str
    row: int
    subject: str = ""


class TextChange(msgspec.Struct, frozen=True, array_like=True):
    """A text value that differs from the one before, by the same name from the same source."""

    source: str
    name: str
    wall_ns: int
    step: int | None
    text: str


class StreamState(msgspec.Struct, array_like=True):
    """The times, the steps and the ending of one session of one source, as known so far."""

    source: str
    session: str
    first_wall_ns: int | None = None
    last_wall_ns: int = 0
    first_step: int | None = None
    last_step: int | None = None
    started_wall_ns: int | None = None
    """Time of its RunStarted."""
    resumed_from_step: int | None = None
    host: str = ""
    status: str | None = None
    """Status of its RunFinished."""
    finished_wall_ns: int | None = None
    exit_code: int | None = None
    is_late: bool = False
    """True if all of it that was seen came from a spool."""


class OpenAlert(msgspec.Struct, frozen=True, array_like=True):
    """An alert that has begun and not ended; stream: the session that said so last."""

    source: str
    subject: str
    stream: int
    severity: str


class State(msgspec.Struct):
    """Everything that the columns of later rows depend on."""

    context: RunContext = RunContext()
    streams: list[StreamState] = []
    kinds: list[str] = []
    orders: dict[str, list[int]] = {}
    """The sessions of each rank in the order of their starts, by places in `streams`."""
    newest: dict[str, int] = {}
    """The newest session of each rank."""
    alerts: list[OpenAlert] = []
    texts: dict[str, dict[str, str]] = {}
    """The last text of each name, by source."""
    text_counts: dict[str, dict[str, int]] = {}
    """Number of changes of each, by source."""
    step: int | None = None
    """The last step of rank 0."""
    wall_ns: int = 0
    """The time of the last row."""
    left_out_names: int = 0
    left_out_marks: int = 0
    undecodable: int = 0

    def copy(self) -> State:
        """Return a state of its own with the same values."""
        return msgspec.msgpack.decode(msgspec.msgpack.encode(self), type=State)
