"""Columns: a run's journal as arrays, for the page, reports, queries and lists of runs.

In: the directory of a run, live, ended, damaged, half-copied or on read-only media.
Out: `RunColumns`: series of values by name, histograms, marks and sessions.
Never: reads further than what is on disk, or takes a mark beyond the end of a copy for damage.

    read_columns(run_dir)   kept columns where they are valid, else the journal; never writes
    keep_columns(run_dir)   the same, and keeps columns for the next reader
    RunColumns.update()     takes in what was recorded since

Needs numpy, so a program that does without columns does not import this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from shared.closing import Closing
from shared.ids import MAIN_SOURCE
from telemetry.recorded import open_recorded
from telemetry.run_dir import RunDir, RunFile
from telemetry.views.column_chunk import NO_STEP, Chunk, ChunkDamaged
from telemetry.views.column_marks import Mark, marks_of
from telemetry.views.column_reading import ColumnReading
from telemetry.views.column_state import TextChange
from telemetry.views.column_store import MIN_FREE_BYTES, ColumnStore
from telemetry.views.column_types import (
    Histogram,
    LayerGrid,
    Rows,
    Series,
    SessionSpan,
    natural,
    span_of,
)
from telemetry.views.restarts import NEVER, superseded_from

__all__ = [
    "Histogram", "LayerGrid", "Mark", "Rows", "RunColumns", "Series", "SessionSpan",
    "keep_columns", "read_columns",
]  # fmt: skip

_T = TypeVar("_T")
_LAYER: Final = re.compile(r"([^/]+)/(layers\.\d+(?:\.[^/]+)?)/(.+)")


def read_columns(run_dir: Path) -> RunColumns:
    """Read a run, from kept columns where they are valid, without writing anything.

    Raises:
        CommandError: it is not the directory of a recorded run.
    """
    return RunColumns(run_dir)


def keep_columns(run_dir: Path, min_free_bytes: int = MIN_FREE_BYTES) -> RunColumns:
    """Read a run, and keep columns for the next reader where that is possible and worth it.

    min_free_bytes: bytes of the disk that stay free.

    Raises:
        CommandError: it is not the directory of a recorded run.
    """
    return RunColumns(run_dir, ColumnStore(run_dir, min_free_bytes))


class RunColumns(Closing):
    """A run as columns, as of the last update. Not thread-safe."""

    def __init__(self, run_dir: Path, store: ColumnStore | None = None) -> None:
        """Read the run. store: keeps columns for the next reader.

        Raises:
            CommandError: it is not the directory of a recorded run.
        """
        self._run_dir = run_dir
        self._told_at = _changed_at(run_dir)
        self._recorded = open_recorded(run_dir)
        self._reading = ColumnReading(run_dir, store)
        self._reading.read_on()
        self._keep_rest()

    @property
    def run_id(self) -> str:
        return self._recorded.run_id

    @property
    def info(self) -> RunFile:
        """The contents of run.json, or what it would say."""
        return self._recorded.facts

    @property
    def rows(self) -> int:
        """The row behind the last that is covered."""
        return self._reading.next_row

    def update(self) -> bool:
        """Take in what was recorded since; return True if there was anything."""
        has_grown = self._reading.read_on()
        told_at = _changed_at(self._run_dir)
        if has_grown or told_at != self._told_at:
            self._told_at, self._recorded = told_at, open_recorded(self._run_dir)
            self._keep_rest()
            return True
        return False

    def close(self) -> None:
        """Close the journal. May be called twice; what was read stays."""
        self._reading.close()

    def names(self, source: str | None = None) -> list[str]:
        """Return the names that have numbers, of one source or of all, sorted for people."""
        keys = {key for chunk in self._chunks for key in chunk.head.series}
        found = {name for each, name in keys if source in (None, each)}
        return sorted(found, key=natural)

    def sources(self, name: str | None = None) -> list[str]:
        """Return the sources that have numbers of this name, or any; rank 0 first."""
        keys = {key for chunk in self._chunks for key in chunk.head.series}
        found = {source for source, each in keys if name in (None, each)}
        return sorted(found, key=lambda source: (not source.startswith("rank"), natural(source)))

    def series(self, name: str, source: str | None = None) -> Series:
        """Return the values of a name; source: by default the first that has it, rank 0 before all.

        Of a name that there is not, the series is empty.
        """
        if source is None:
            source = next(iter(self.sources(name)), MAIN_SOURCE)
        return self._whole(lambda: self._series(name, source))

    def layer_metrics(self) -> list[str]:
        """Return the names of metrics that layers have, such as `quant/zero_ratio`."""
        found = {f"{m[1]}/{m[3]}" for name in self.names() if (m := _LAYER.fullmatch(name))}
        return sorted(found, key=natural)

    def layers(self, metric: str, source: str | None = None) -> dict[str, Series]:
        """Return the series of one metric by layer, in the order of the layers."""
        found = {}
        for name in self.names(source):
            match = _LAYER.fullmatch(name)
            if match and f"{match[1]}/{match[3]}" == metric:
                found[match[2]] = self.series(name, source)
        return found

    def layer_grid(self, metric: str, source: str | None = None) -> LayerGrid:
        """Return one metric of all layers over steps; of one step the last value stands."""
        by_layer = self.layers(metric, source)
        kept = {layer: s.superseded | (s.step == NO_STEP) for layer, s in by_layer.items()}
        steps = [s.step[~kept[layer]] for layer, s in by_layer.items()]
        axis = np.unique(np.concatenate(steps)) if steps else np.empty(0, np.int64)
        value = np.full((len(by_layer), len(axis)), np.nan)
        for row, (layer, s) in enumerate(by_layer.items()):
            value[row, np.searchsorted(axis, steps[row])] = s.value[~kept[layer]]
        return LayerGrid(list(by_layer), axis, value)

    def histogram_names(self) -> list[str]:
        """Return the names that have histograms."""
        keys = {key for chunk in self._chunks for key in chunk.head.histograms}
        return sorted({name for _, name in keys}, key=natural)

    def histograms(self, name: str, source: str = MAIN_SOURCE) -> list[Histogram]:
        """Return the histograms of one name, in the order of the journal."""
        return self._whole(lambda: self._histograms(name, source))

    def texts(self, name: str, source: str = MAIN_SOURCE) -> list[TextChange]:
        """Return the changes of a text value: each differs from the one before."""
        found = (change for chunk in self._chunks for change in chunk.head.texts)
        return [change for change in found if (change.source, change.name) == (source, name)]

    def last_texts(self, source: str = MAIN_SOURCE) -> dict[str, str]:
        """Return the last text of each name that has any."""
        return dict(self._reading.state.texts.get(source, {}))

    def rows_of_kind(self, kind: str, source: str = MAIN_SOURCE) -> Rows:
        """Return the rows of a kind (train, val, quant, ...) with a step."""
        return self._whole(lambda: self._rows_of_kind(kind, source))

    @property
    def marks(self) -> list[Mark]:
        """Starts, restarts, stages, alerts, messages, gaps, damage and ends, by their times."""
        chunks = self._chunks
        raw = (mark for chunk in chunks for mark in chunk.head.marks)
        return marks_of(raw, (change for chunk in chunks for change in chunk.head.texts))

    @property
    def sessions(self) -> list[SessionSpan]:
        """All sessions of all sources, in the order in which they were first recorded."""
        state = self._reading.state
        return [
            span_of(each, None if limit == NEVER else int(limit))
            for each, limit in zip(state.streams, superseded_from(state), strict=True)
        ]

    @property
    def left_out(self) -> dict[str, int]:
        """Count of what columns leave out to stay within bounds, and of what can't be decoded."""
        state = self._reading.state
        found = {
            "names": state.left_out_names,
            "marks": state.left_out_marks,
            "undecodable": state.undecodable,
        }
        return {name: count for name, count in found.items() if count}

    # --- from chunks

    def _keep_rest(self) -> None:
        if self.info.is_ended:
            self._reading.keep_rest()

    @property
    def _chunks(self) -> list[Chunk]:
        return self._reading.chunks

    def _whole(self, read: Callable[[], _T]) -> _T:
        """Return what read returns; where kept columns prove damaged, by the journal alone."""
        try:
            return read()
        except ChunkDamaged:
            self._reading.forget_kept()
            self._reading.read_on()
            return read()

    def _series(self, name: str, source: str) -> Series:
        superseded_at = superseded_from(self._reading.state)
        parts = []
        for chunk in self._chunks:
            if (points := chunk.points(source, name)) is not None:
                moments, at = chunk.moments(), points.moment
                step = moments.step[at]
                is_over = (step >= superseded_at[moments.stream[at]]) & (step != NO_STEP)
                parts.append(Series(step, moments.wall_ns[at] / 1e9, points.value, is_over))
        if not parts:
            empty = np.empty(0)
            return Series(empty.astype(np.int64), empty, empty.copy(), empty.astype(bool))
        if len(parts) == 1:
            return parts[0]
        return Series(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _rows_of_kind(self, kind: str, source: str) -> Rows:
        state = self._reading.state
        superseded_at = superseded_from(state)
        is_source = np.array([each.source == source for each in state.streams], bool)
        parts = [Rows(*(np.empty(0, kind) for kind in (np.int64, float, np.int32, bool)))]
        for chunk in self._chunks:
            if kind not in chunk.head.state.kinds:
                continue
            moments = chunk.moments()
            number = chunk.head.state.kinds.index(kind)
            at = (moments.kind == number) & is_source[moments.stream] & (moments.step != NO_STEP)
            step, stream = moments.step[at], moments.stream[at]
            is_over = step >= superseded_at[stream]
            parts.append(Rows(step, moments.wall_ns[at] / 1e9, stream, is_over))
        return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _histograms(self, name: str, source: str) -> list[Histogram]:
        superseded_at = superseded_from(self._reading.state)
        found = []
        for chunk in self._chunks:
            points = chunk.histograms(source, name)
            if points is None:
                continue
            moments = chunk.moments()
            # There is one edge more than counts.
            ends = np.cumsum(points.length, dtype=np.int64)
            for i, at in enumerate(points.moment):
                end, size = int(ends[i]), int(points.length[i])
                step = int(moments.step[at])
                found.append(
                    Histogram(
                        None if step == NO_STEP else step,
                        float(moments.wall_ns[at]) / 1e9,
                        points.edges[end - size + i : end + i + 1],
                        points.counts[end - size : end],
                        step != NO_STEP and step >= int(superseded_at[moments.stream[at]]),
                    )
                )
        return found


def _changed_at(run_dir: Path) -> int | None:
    """Return the time of the last change of run.json in ns; None where there is none."""
    try:
        return RunDir(run_dir).run_file.stat().st_mtime_ns
    except OSError:
        return None
