"""Policy: turns each row into entries, with their tags and steps.

In: rows of one run, in order from its first.
Out: entries.
Never: depends on anything but the rows, so live, resumed and replayed runs agree.

    row                            entry
    metrics, gap                   a scalar for each number; a text for each text that has changed
    histogram                      a histogram
    message, alert, gap,           a text `messages/<level>`
    run started, run finished
    run started, config updated    a text `config`; for rank 0 also the panels of Custom Scalars
                                   and, with its first metrics, a line of the HPARAMS tab
    any event that lacks a part    a text `messages/left_out`, once for each reason

The step of an entry is the training step of its row. Hardware has none: its step is
the second of the run. For anything else without a training step it is the number of
the row in its session, or in the journal if a stream has several sessions.
`train/global_step` repeats the step axis, so it is written once a step. The same value
again at the same step is not written; the placement decides that. The telemetry's own
counts (`telemetry/...`) have a subdirectory of their own.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping

import msgspec

from shared.events import (
    HARDWARE,
    AlertChanged,
    ConfigUpdated,
    DecodeError,
    Event,
    Gap,
    HistogramLogged,
    MessageLogged,
    PartialEvent,
    RunFinished,
    RunStarted,
    Scalar,
)
from telemetry.alerts.words import level_of, words_of
from telemetry.journal.rows import ELAPSED, STEP, Point, Row, RunContext, point_of
from telemetry.sinks.tensorboard import event_lines, said
from telemetry.sinks.tensorboard.bounds import BOUNDS, Bounds
from telemetry.sinks.tensorboard.entries import Entry, Extra, Histogram, Text
from telemetry.sinks.tensorboard.lasts_file import SessionChange
from telemetry.sinks.tensorboard.placement import TEXT, LeftOut
from telemetry.sinks.tensorboard.session_dirs import Stream, Streams, StreamsState
from telemetry.sinks.tensorboard.units import OWN_PREFIX, shown_hardware

_log = logging.getLogger(__name__)


class PolicyState(msgspec.Struct):
    """State of the policy after the rows so far, without the tags, as JSON can hold it."""

    context: RunContext = RunContext()
    streams: StreamsState = msgspec.field(default_factory=StreamsState)


class Policy:
    """Chooses the entries for rows, in order. Not thread-safe."""

    def __init__(
        self,
        state: PolicyState,
        lasts: list[SessionChange] | None = None,
        *,
        has_cores: bool = False,
        bounds: Bounds = BOUNDS,
    ) -> None:
        """Continue from a state and the last steps stored with it.

        has_cores: chart each processor core too.

        Raises:
            ValueError: lasts belong to another state.
        """
        self._context = state.context
        self._streams = Streams(state.streams, lasts, bounds)
        self._has_cores = has_cores

    def state(self) -> PolicyState:
        return PolicyState(self._context, self._streams.state())

    def take_changes(self) -> list[SessionChange]:
        """Return the changes of last steps since the last call."""
        return self._streams.take_changes()

    def everything(self) -> Iterator[SessionChange]:
        """Yield all last steps that are remembered, as changes."""
        return self._streams.everything()

    @property
    def tags(self) -> int:
        """Number of tags whose last steps are remembered."""
        return self._streams.tags

    @property
    def left_out(self) -> LeftOut:
        """Counts of the values left out so far."""
        return self._streams.left_out

    def entries(self, row: Row) -> list[Entry]:
        """Return the entries for a row; none for an event of an unknown type."""
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
                entries += said.message(row, stream, level, text)
            case AlertChanged():
                entries += said.message(row, stream, level_of(event), words_of(event))
            case Gap():
                entries += said.message(row, stream, "gap", event_lines.gap(event))
            case RunStarted():
                entries += said.started(row, stream, event)
            case ConfigUpdated(config=config):
                entries += said.config_text(row, stream, config)
            case RunFinished():
                entries += said.finished(row, stream, event)
        if isinstance(event, PartialEvent) and event.left_out_count:
            entries += said.left_out(row, stream, event)
        return entries

    def _metrics(self, row: Row, stream: Stream, point: Point) -> list[Entry]:
        values = point.values
        step = stream.number_of(row) if point.step is None else point.step
        is_sampled = point.kind == HARDWARE
        if is_sampled:
            step = stream.second_of(float(values.get(ELAPSED, 0.0)))
            values = shown_hardware(values, has_cores=self._has_cores)
        numbers, texts, own = _sorted_out(stream, values)
        repeats_step = point.step is not None and values.get(STEP) == point.step
        if repeats_step and not stream.placement.rises(STEP, step):
            numbers.pop(STEP, None)
        entries = self._numbers(row, stream, step, numbers, is_sampled)
        for name, text in texts.items():
            entries += self._text(row, stream, step, name, text)
        if own:
            entries += self._own(row, own)
        # The telemetry's own counts don't mean that training has begun: they may come long
        # before the model is built and the configuration is complete.
        is_trained = bool(numbers or texts)
        return [*(said.config_start(row, stream) if is_trained else ()), *entries]

    def _numbers(
        self, row: Row, stream: Stream, step: int, numbers: dict[str, float], is_sampled: bool
    ) -> list[Entry]:
        before = stream.placement.tags
        placed = stream.placement.numbers(step, numbers, is_sampled=is_sampled)
        grown = stream.placement.tags - before
        if grown:
            self._streams.grew(stream, grown)
        return [
            _entry(row, self._streams.directory(stream, level), step, values)
            for level, values in placed.items()
            if values
        ]

    def _text(self, row: Row, stream: Stream, step: int, name: str, text: str) -> list[Entry]:
        tag = stream.tag(name, "text")
        short = text if len(text) <= 64 else hashlib.sha256(text.encode()).hexdigest()
        return self._extra(row, stream, step, tag, f"{TEXT}{short}", Text(event_lines.shown(text)))

    def _histogram(self, row: Row, stream: Stream, event: HistogramLogged) -> list[Entry]:
        tag = stream.tag(event.name, "histogram")
        step = stream.number_of(row) if event.step is None else event.step
        content = msgspec.msgpack.encode((event.edges, event.counts))
        short = f"histogram:{hashlib.sha256(content).hexdigest()[:16]}"
        return self._extra(row, stream, step, tag, short, Histogram(event.edges, event.counts))

    def _extra(
        self, row: Row, stream: Stream, step: int, tag: str, short: str, extra: Extra
    ) -> list[Entry]:
        before = stream.placement.tags
        level = stream.placement.other(tag, step, short)
        self._streams.grew(stream, stream.placement.tags - before)
        if level is None:
            return []
        directory = self._streams.directory(stream, level)
        return [Entry(directory, step, row.envelope.wall_ns, {}, [(tag, extra)])]

    def _own(self, row: Row, values: dict[str, float]) -> list[Entry]:
        """Place the telemetry's own counts, from any source."""
        stream = self._streams.of_own(row)
        tagged = {stream.tag(name, "scalar"): value for name, value in values.items()}
        return self._numbers(row, stream, stream.number_of(row), tagged, False)


def _sorted_out(
    stream: Stream, values: Mapping[str, Scalar]
) -> tuple[dict[str, float], dict[str, str], dict[str, float]]:
    """Split values into numbers by tag, texts by name, and the telemetry's own counts by name."""
    numbers: dict[str, float] = {}
    texts: dict[str, str] = {}
    own: dict[str, float] = {}
    known = stream.scalar_tags
    for name, value in values.items():
        tag = known.get(name)
        if type(value) is float and tag is not None:  # nearly all of them
            numbers[tag] = value
        elif isinstance(value, str):
            texts[name] = value
        elif tag is not None:
            numbers[tag] = float(value)
        elif name.startswith(OWN_PREFIX):
            own[name] = float(value)
        else:
            numbers[stream.tag(name, "scalar")] = float(value)
    return numbers, texts, own


def _event_of(row: Row) -> Event | None:
    try:
        return row.envelope.event()
    except DecodeError as exc:
        # Ingest refuses such events, so another version wrote this journal: its other rows
        # are not affected.
        _log.warning("row %d is left out: %s", row.row, exc)
        return None


def _entry(row: Row, directory: str, step: int, scalars: dict[str, float]) -> Entry:
    return Entry(directory, step, row.envelope.wall_ns, scalars, [])
