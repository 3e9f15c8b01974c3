"""The policy: which rows become which entries, under which tag and step.

In: rows of one run, in order from its first.
Out: entries.
Never: depends on anything but the rows, so live, resumed and replayed runs agree.

    row                            entry
    metrics, gap                   a scalar a value; a text where the value is one and has changed
    histogram                      a histogram
    message, gap, run started,     a text `messages/<level>`
    run finished
    run started, config updated    a text `config`; for rank 0 also the panels of Custom Scalars
                                   and, with its first metrics, a line of the HPARAMS tab

The step is the training step. The step of hardware is its sample number, and
of anything else without one its number in its session. `train/global_step`
says again what the step axis says, so it is written once a step.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec

from shared.events import (
    ConfigUpdated,
    DecodeError,
    Event,
    Gap,
    HistogramLogged,
    MessageLogged,
    RunFinished,
    RunStarted,
)
from telemetry.rows import STEP, Point, Row, RunContext, point_of
from telemetry.sinks.tensorboard import words
from telemetry.sinks.tensorboard.config import flat_config, table
from telemetry.sinks.tensorboard.entries import (
    ConfigEnd,
    ConfigStart,
    ConfigTable,
    Entry,
    Extra,
    Histogram,
    PanelLayout,
    Text,
)
from telemetry.sinks.tensorboard.streams import Stream, Streams, StreamsState

CONFIG_TAG: Final = "config"
LAYOUT_TAG: Final = "custom_scalars__config__"
TABLE_TAG: Final = "_hparams_/experiment"
START_TAG: Final = "_hparams_/session_start_info"
END_TAG: Final = "_hparams_/session_end_info"
RANK0: Final = "rank0"

_log = logging.getLogger(__name__)


class PolicyState(msgspec.Struct):
    """All that the policy knows of the rows before, as JSON can hold it."""

    context: RunContext = RunContext()
    streams: StreamsState = msgspec.field(default_factory=StreamsState)


class Policy:
    """Entries of rows. Not thread-safe."""

    def __init__(self, state: PolicyState) -> None:
        self._context = state.context
        self._streams = Streams(state.streams)

    def state(self) -> PolicyState:
        return PolicyState(self._context, self._streams.state())

    def entries(self, row: Row) -> list[Entry]:
        """What a row becomes. A row that can't be understood here becomes nothing."""
        event = _event_of(row)
        self._context = self._context.after(row, event)
        if event is None:
            return []
        stream = self._streams.of(row, self._context.host)
        point = point_of(row, event, self._context)
        entries = [] if point is None else self._metrics(row, stream, point)
        match event:
            case HistogramLogged():
                entries += self._histogram(row, stream, event)
            case MessageLogged(level=level, text=text):
                entries += _message(row, stream, level, text)
            case Gap():
                entries += _message(row, stream, "gap", words.gap(event))
            case RunStarted():
                entries += _started(row, stream, event)
            case ConfigUpdated(config=config):
                entries += _config(row, stream, config)
            case RunFinished():
                entries += _finished(row, stream, event)
        return entries

    def _metrics(self, row: Row, stream: Stream, point: Point) -> list[Entry]:
        scalars: dict[str, float] = {}
        texts: dict[str, str] = {}
        for name, value in point.values.items():
            if isinstance(value, str):
                texts[stream.tag(name, "text")] = value
            else:
                # stream.tag costs as much as all the rest: ask it only where it may object.
                scalars[stream.tag(name, "scalar") if name in stream.kinds else name] = float(value)
        repeats_step = point.step is not None and point.values.get(STEP) == point.step
        if repeats_step:
            scalars.pop(STEP, None)
        step = stream.step_of(row.seq, point.kind, point.step)
        step = self._streams.place(stream, row.seq, step, [*scalars, *texts])
        if repeats_step and stream.rises(step, (STEP,)):
            stream.take(step, (STEP,))
            scalars[STEP] = float(point.step or 0)
        changed = [(tag, Text(text)) for tag, text in texts.items() if stream.has_new(tag, text)]
        start = _config_start(row, stream)
        if not scalars and not changed:
            return start
        return [*start, Entry(stream.directory, step, row.envelope.wall_ns, scalars, [*changed])]

    def _histogram(self, row: Row, stream: Stream, event: HistogramLogged) -> list[Entry]:
        tag = stream.tag(event.name, "histogram")
        step = stream.step_of(row.seq, event.kind, event.step)
        step = self._streams.place(stream, row.seq, step, (tag,))
        extra = Histogram(event.edges, event.counts)
        return [Entry(stream.directory, step, row.envelope.wall_ns, {}, [(tag, extra)])]


def _event_of(row: Row) -> Event | None:
    try:
        return row.envelope.event()
    except DecodeError as exc:
        # Ingest refuses these, so this is a journal of some other version: its
        # next rows are as good as ever.
        _log.warning("row %d is left out: %s", row.row, exc)
        return None


def _said(row: Row, stream: Stream, tag: str, extra: Extra) -> Entry:
    """Something without a training step. Its tags are its own, so its seq always rises."""
    return Entry(stream.directory, row.seq, row.envelope.wall_ns, {}, [(tag, extra)])


def _message(row: Row, stream: Stream, level: str, text: str) -> list[Entry]:
    return [_said(row, stream, stream.tag(f"messages/{level}", "message"), Text(text))]


def _started(row: Row, stream: Stream, event: RunStarted) -> list[Entry]:
    entries = _message(row, stream, "run", words.started(event))
    if row.source == RANK0:
        stream.config = {}
        entries.append(_said(row, stream, LAYOUT_TAG, PanelLayout()))
    return entries + _config(row, stream, words.description(event) | event.config)


def _config(row: Row, stream: Stream, config: dict[str, Any]) -> list[Entry]:
    """The configuration so far, as a text. Ranks above 0 would only repeat rank 0's."""
    if row.source.startswith("rank") and row.source != RANK0:
        return []
    flat = flat_config(config)
    if stream.config is not None:
        stream.config |= flat
        flat = stream.config
    tag = stream.tag(CONFIG_TAG, "message")
    return [_said(row, stream, tag, Text(table(flat)))]


def _config_start(row: Row, stream: Stream) -> list[Entry]:
    """The line of the HPARAMS tab, once the configuration is whole.

    The tab keeps the first one that a subdirectory states; what is known only
    after the model is built would never get there.
    """
    if stream.config is None:
        return []
    config, stream.config = stream.config, None
    return [
        _said(row, stream, TABLE_TAG, ConfigTable(config)),
        _said(row, stream, START_TAG, ConfigStart(config)),
    ]


def _finished(row: Row, stream: Stream, event: RunFinished) -> list[Entry]:
    entries = _message(row, stream, "run", words.finished(event))
    if row.source == RANK0:
        entries += _config_start(row, stream)
        entries.append(_said(row, stream, END_TAG, ConfigEnd(event.status)))
    return entries
