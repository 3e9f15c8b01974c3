"""The builder of columns: takes the rows of a journal one by one, and returns them as a chunk.

In: rows, in the order of the journal.
Out: chunks of arrays, and the state behind each.
Never: more than NAMES_MAX series a run or MARKS_MAX marks a chunk; what is left out is counted.

The names of values are those that every sink shows (`point_of`), but for `hw/elapsed_seconds`,
and for a `train/global_step` that the event itself does not have. Values that are not texts
become numbers, true and false 1 and 0. Rows with the same names from the same source are
collected as tuples, which numpy turns into columns: four times as fast as one by one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.events import (
    HARDWARE,
    TRAIN,
    DecodeError,
    Event,
    HistogramLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
    Scalar,
)
from shared.ids import MAIN_SOURCE
from telemetry.journal.place import RecordPlace
from telemetry.journal.rows import ELAPSED, STEP, Row, point_of
from telemetry.journal.scan import Damage
from telemetry.views.column_chunk import (
    NO_STEP,
    Array,
    Chunk,
    ChunkHead,
    HistogramPoints,
    Moments,
    Points,
)
from telemetry.views.column_marks import MarkTaker
from telemetry.views.column_state import State, StreamState, TextChange
from telemetry.views.restarts import (
    is_rank,
    note_finish,
    note_spans,
    note_start,
    note_time,
    place_before_newest,
)

NAMES_MAX = 100_000
TEXT_CHANGES_MAX = 1_000
"""Changes of one text that are kept, in a run."""
TEXT_MAX_CHARS = 256

Key = tuple[str, str]
"""A source and a name."""


class _Shape:
    """Rows that have the same names from the same source."""

    def __init__(self) -> None:
        self.moments = array("I")
        self.values: list[tuple[Scalar, ...]] = []


class ColumnBuilder:
    """Rows since the last chunk, and the state behind them. Not thread-safe."""

    def __init__(
        self, journal: str, state: State, next_row: int, known: Iterable[Key] = ()
    ) -> None:
        """Begin behind a chunk. known: the series that earlier chunks have."""
        self._journal, self._state = journal, state
        self.first_row = self.next_row = next_row
        self._known = set(known)
        self._places = {(s.source, s.session): i for i, s in enumerate(state.streams)}
        self._marks = MarkTaker(state)
        self._clear()

    @property
    def rows(self) -> int:
        """Rows since the last chunk."""
        return self.next_row - self.first_row

    @property
    def has_any(self) -> bool:
        """True if there is anything since the last chunk."""
        return self.rows > 0 or self._marks.has_any

    def take(self, row: Row) -> None:
        """Take in the next row."""
        self.next_row = row.row + 1
        self._state.wall_ns = row.envelope.wall_ns
        try:
            event = row.envelope.event()
        except DecodeError:
            self._state.undecodable += 1
            return
        stream = self._places.get((row.source, row.session))
        if stream is None:
            stream = self._new_stream(row)
        if self._state.alerts and not row.is_late:
            self._marks.end_former_alerts(row, stream)
        if type(event) is MetricsLogged:
            self._take_metrics(row, event, stream)
        elif type(event) is HistogramLogged:
            self._take_histogram(row, event, stream)
        else:
            self._take_other(row, event, stream)

    def take_damage(self, damage: Damage) -> None:
        """Note rows that are damaged or missing."""
        self._marks.take_damage(damage, self._state.wall_ns)

    def chunk(self, last_record: RecordPlace | None) -> Chunk:
        """Return the rows since the last chunk, and begin the next."""
        moments = Moments(
            np.array(self._step, np.int64),
            np.array(self._wall_ns, np.int64),
            np.array(self._stream, np.int32),
            np.array(self._kind, np.int16),
        )
        note_spans(self._state.streams, moments)
        series = self._series(moments)
        arrays: list[Array] = [*moments]
        for points in series.values():
            arrays += points
        for found in self._histograms.values():
            arrays += _joined(found)
        head = ChunkHead(
            journal=self._journal,
            first_row=self.first_row,
            next_row=self.next_row,
            last_record=last_record,
            series=list(series),
            histograms=list(self._histograms),
            marks=self._marks.taken(),
            texts=self._texts,
            state=self._state.copy(),
        )
        self._clear()
        return Chunk(head, arrays)

    def _clear(self) -> None:
        self.first_row = self.next_row
        self._step, self._wall_ns = array("q"), array("q")
        self._stream, self._kind = array("i"), array("h")
        self._shapes: dict[tuple[str, tuple[str, ...]], _Shape] = {}
        self._histograms: dict[Key, list[tuple[int, HistogramLogged]]] = {}
        self._texts: list[TextChange] = []

    def _new_stream(self, row: Row) -> int:
        streams = self._state.streams
        place = self._places[row.source, row.session] = len(streams)
        streams.append(StreamState(row.source, row.session, is_late=row.is_late))
        if is_rank(row.source):
            place_before_newest(self._state, row.source, place)
        return place

    def _take_metrics(self, row: Row, event: MetricsLogged, stream: int) -> None:
        context = self._state.context
        # What `point_of` needs of the rows before changes with few of them. The clock of the run
        # changes with all, but only `hw/elapsed_seconds` is told by it.
        if event.kind == HARDWARE:
            context = self._state.context = context.after(row, event)
        elif event.kind == TRAIN and context.energy.joules is not None:
            mono_ns = row.envelope.mono_ns
            energy = context.energy.after(row.source, row.session, mono_ns, event)
            context = msgspec.structs.replace(context, energy=energy)
            self._state.context = context
        point = point_of(row, event, context)
        assert point is not None
        values = point.values
        if event.kind == HARDWARE:
            values.pop(ELAPSED, None)
        elif STEP not in event.values:
            values.pop(STEP, None)
        if values:
            moment = self._add_moment(row, event.kind, event.step, stream)
            key = row.source, tuple(values)
            shape = self._shapes.get(key)
            if shape is None:
                shape = self._shapes[key] = _Shape()
            shape.moments.append(moment)
            shape.values.append(tuple(values.values()))

    def _take_histogram(self, row: Row, event: HistogramLogged, stream: int) -> None:
        key = row.source, event.name
        if self._has_room_for(key):
            moment = self._add_moment(row, event.kind, event.step, stream)
            self._histograms.setdefault(key, []).append((moment, event))

    def _take_other(self, row: Row, event: Event | None, stream: int) -> None:
        """Take in an event without values: starts, ends, messages, alerts, gaps."""
        session = self._state.streams[stream]
        note_time(session, row.envelope.wall_ns)
        if isinstance(event, RunStarted):
            self._state.context = self._state.context.after(row, event)
            note_start(self._state, row, event, stream)
        elif isinstance(event, RunFinished):
            note_finish(session, row, event)
        self._marks.take(row, event, stream)

    def _add_moment(self, row: Row, kind: str, step: int | None, stream: int) -> int:
        kinds = self._state.kinds
        if kind not in kinds:
            kinds.append(kind)
        if step is not None and row.source == MAIN_SOURCE:
            self._state.step = step
        self._step.append(NO_STEP if step is None else step)
        self._wall_ns.append(row.envelope.wall_ns)
        self._stream.append(stream)
        self._kind.append(kinds.index(kind))
        return len(self._step) - 1

    def _has_room_for(self, key: Key) -> bool:
        if key in self._known:
            return True
        if len(self._known) >= NAMES_MAX:
            self._state.left_out_names += 1
            return False
        self._known.add(key)
        return True

    def _series(self, moments: Moments) -> dict[Key, Points]:
        """Return the values of each name: first by shapes, then joined in the order of rows."""
        parts: dict[Key, list[Points]] = {}
        texts: dict[Key, list[tuple[int, str]]] = {}
        for (source, names), shape in self._shapes.items():
            at = np.array(shape.moments, np.uint32)
            for name, column in zip(names, zip(*shape.values, strict=True), strict=True):
                key = source, name
                if not self._has_room_for(key):
                    continue
                points = _numbers(at, column, texts.setdefault(key, []))
                if len(points.moment):
                    parts.setdefault(key, []).append(points)
        for key, found in texts.items():
            self._note_texts(key, sorted(found), moments)
        return {key: _merged(found) for key, found in parts.items()}

    def _note_texts(self, key: Key, found: list[tuple[int, str]], moments: Moments) -> None:
        """Keep the texts that differ from the one before."""
        source, name = key
        for moment, text in found:
            told = self._state.texts.setdefault(source, {})
            counts = self._state.text_counts.setdefault(source, {})
            if told.get(name) == text:
                continue
            told[name] = text
            counts[name] = counts.get(name, 0) + 1
            if counts[name] <= TEXT_CHANGES_MAX:
                step, wall_ns = int(moments.step[moment]), int(moments.wall_ns[moment])
                change = TextChange(source, name, wall_ns, None if step == NO_STEP else step, text)
                self._texts.append(change)


def _numbers(
    at: NDArray[np.uint32], column: tuple[Scalar, ...], texts: list[tuple[int, str]]
) -> Points:
    """Return the numbers of a column, and add its texts to `texts`."""
    types = set(map(type, column))
    if str not in types:
        return Points(at, np.array(column, np.float64))
    texts += [
        (int(moment), value[:TEXT_MAX_CHARS])
        for moment, value in zip(at, column, strict=True)
        if isinstance(value, str)
    ]
    is_number = np.array([not isinstance(value, str) for value in column], bool)
    numbers = [value for value in column if not isinstance(value, str)]
    return Points(at[is_number], np.array(numbers, np.float64))


def _merged(parts: list[Points]) -> Points:
    """Join parts of one series, in the order of their moments."""
    if len(parts) == 1:
        return parts[0]
    moment = np.concatenate([part.moment for part in parts])
    value = np.concatenate([part.value for part in parts])
    order = np.argsort(moment, kind="stable")
    return Points(moment[order], value[order])


def _joined(found: list[tuple[int, HistogramLogged]]) -> HistogramPoints:
    return HistogramPoints(
        np.array([moment for moment, _ in found], np.uint32),
        np.array([len(event.counts) for _, event in found], np.uint32),
        np.array([edge for _, event in found for edge in event.edges], np.float64),
        np.array([count for _, event in found for count in event.counts], np.float64),
    )
