"""Trace events: the rows of a run as spans, counters and instants of the Trace Event format.

In: rows, in the order of the journal.
Out: objects of that format, each to be written as JSON.
Never: keeps more than what is open: sessions, stages, alerts and the last step of each rank.

Each source is a process of the trace, by its name, with these threads:

    1 session   from RunStarted to RunFinished, or to its last row before the next session
    2 stages    the training stages of rank 0
    3 steps     what lies between two logged steps, and in it its parts: means of that stretch,
                one behind the other, as long as all its steps together
    4 phases    evaluations and checkpoints, from `time/..._seconds`

Numbers are counters: training, validation and hardware, but not each processor core. Alerts are
asynchronous spans; messages and gaps are instants. Times are microseconds since the first row, by
the wall clocks of the senders; what lies before is at 0.

Source: Trace Event Format, docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from shared.events import (
    HARDWARE,
    TRAIN,
    VAL,
    AlertChanged,
    DecodeError,
    Event,
    Gap,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
)
from shared.ids import MAIN_SOURCE
from shared.text import clean
from telemetry.journal.rows import Row

TraceEvent = dict[str, Any]

SESSION, STAGES, STEPS, PHASES = THREADS = (1, 2, 3, 4)
_THREAD_NAMES: Final = {SESSION: "session", STAGES: "stages", STEPS: "steps", PHASES: "phases"}
ALERTS_MAX: Final = 1_000
LENGTH_MAX_S: Final = 1e9
STAGE: Final = "train/training_stage"
STEP_SECONDS: Final = "train/step_seconds"
PARTS: Final = ("input", "forward", "backward", "optimizer")
PHASE_NAMES: Final = {
    "time/evaluation_seconds": "evaluation",
    "time/checkpoint_seconds": "checkpoint",
}
_CORE: Final = re.compile(r"cpu/\d+/percent")
_NOT_COUNTED: Final = re.compile(r"train/(global_step|epoch|[a-z]+_seconds)|rank/\d+/step_seconds")


class SourceState(msgspec.Struct):
    """Open spans of one source. step, wall_ns: of the last logged step of its session.

    last_ns: the time of the last row of its session.
    """

    pid: int
    session: str = ""
    is_open: bool = False
    stage: str = ""
    step: int | None = None
    wall_ns: int = 0
    last_ns: int = 0


class TraceState(msgspec.Struct):
    """All that the events of later rows depend on."""

    first_wall_ns: int | None = None
    sources: dict[str, SourceState] = {}
    alerts: dict[str, str] = {}
    """Name of each open alert, by its id."""


class TraceEvents:
    """The trace of one run, row by row. Not thread-safe."""

    def __init__(self, state: TraceState, *, per_core: bool = False) -> None:
        self.state, self._per_core = state, per_core

    def of(self, row: Row) -> Iterator[TraceEvent]:
        """Yield the trace events of a row."""
        try:
            event = row.envelope.event()
        except DecodeError:
            return
        state, wall_ns = self.state, row.envelope.wall_ns
        if state.first_wall_ns is None:
            state.first_wall_ns = wall_ns
        source = state.sources.get(row.source)
        if source is None:
            source = state.sources[row.source] = SourceState(len(state.sources) + 1)
            yield from _introduced(row.source, source.pid)
        if isinstance(event, MetricsLogged):
            yield from self._metrics(row, event, source)
        else:
            yield from self._other(row, event, source)
        if row.session == source.session:
            source.last_ns = max(source.last_ns, wall_ns)

    def closing(self, wall_ns: int) -> Iterator[TraceEvent]:
        """Yield the ends of all that is open, for the end of a file; the state stays as it is."""
        for source in self.state.sources.values():
            if source.stage:
                yield self._end(source.pid, STAGES, wall_ns)
            if source.is_open:
                yield self._end(source.pid, SESSION, wall_ns)
        for id, name in self.state.alerts.items():
            yield self._alert("e", id, name, wall_ns)

    # --- events without values

    def _other(self, row: Row, event: Event | None, source: SourceState) -> Iterator[TraceEvent]:
        wall_ns = row.envelope.wall_ns
        match event:
            case RunStarted():
                yield from self._started(row, event, source)
            case RunFinished(status=status, exit_code=code):
                yield self._instant(source, wall_ns, f"ended: {status}", {"exit_code": code})
                if source.session == row.session:
                    yield from self._ended(source, wall_ns)
            case MessageLogged(level=level, text=text):
                yield self._instant(source, wall_ns, text, {"level": level})
            case Gap(count=count, reason=reason):
                text = f"{count:,} events are missing: {reason}"
                yield self._instant(source, wall_ns, text, {"level": "warning"})
            case AlertChanged():
                yield from self._alert_changed(row, event)

    def _started(self, row: Row, event: RunStarted, source: SourceState) -> Iterator[TraceEvent]:
        wall_ns = row.envelope.wall_ns
        if row.is_late:  # another session is at work already
            yield self._instant(source, wall_ns, f"session {row.session} started", {})
            return
        yield from self._ended(source, source.last_ns)
        source.session, source.is_open, source.last_ns = row.session, True, wall_ns
        source.step, source.wall_ns = event.resumed_from_step, wall_ns
        args = {"host": event.host, "resumed_from_step": event.resumed_from_step}
        name = clean(f"session {row.session}", 256)
        yield self._at("B", name, source.pid, SESSION, wall_ns) | {"args": args}

    def _ended(self, source: SourceState, wall_ns: int) -> Iterator[TraceEvent]:
        if source.stage:
            yield self._end(source.pid, STAGES, wall_ns)
        if source.is_open:
            yield self._end(source.pid, SESSION, wall_ns)
        source.stage, source.is_open, source.step = "", False, None

    def _alert_changed(self, row: Row, event: AlertChanged) -> Iterator[TraceEvent]:
        id = clean(f"{row.source} {event.name} {event.subject}", 512)
        before = self.state.alerts.pop(id, None)
        if before is not None:
            yield self._alert("e", id, before, row.envelope.wall_ns)
        if event.is_active and len(self.state.alerts) < ALERTS_MAX:
            name = clean(event.text or f"{event.name} {event.subject}", 256)
            self.state.alerts[id] = name
            yield self._alert("b", id, name, row.envelope.wall_ns)

    # --- values

    def _metrics(self, row: Row, event: MetricsLogged, source: SourceState) -> Iterator[TraceEvent]:
        for name, phase in PHASE_NAMES.items():
            if (seconds := _seconds(event.values.get(name))) is not None:
                yield self._phase(row, event, source, phase, seconds)
        if event.kind == TRAIN and event.step is not None and row.session == source.session:
            stage = event.values.get(STAGE)
            if isinstance(stage, str) and row.source == MAIN_SOURCE and stage != source.stage:
                yield from self._stage(source, clean(stage, 256), row.envelope.wall_ns)
            yield from self._steps(row, event, event.step, source)
        if event.kind in (TRAIN, VAL, HARDWARE):
            yield from self._counters(row, event, source)

    def _phase(
        self, row: Row, event: MetricsLogged, source: SourceState, phase: str, seconds: float
    ) -> TraceEvent:
        end_ns = row.envelope.wall_ns
        if event.step == source.step and row.session == source.session:
            # The next steps begin behind it, and not at the row before it.
            source.wall_ns = max(source.wall_ns, end_ns)
        begin_ns = end_ns - int(seconds * 1e9)
        return self._span(phase, source.pid, PHASES, begin_ns, end_ns, {"step": event.step})

    def _stage(self, source: SourceState, stage: str, wall_ns: int) -> Iterator[TraceEvent]:
        if source.stage:
            yield self._end(source.pid, STAGES, wall_ns)
        source.stage = stage
        yield self._at("B", stage, source.pid, STAGES, wall_ns)

    def _steps(
        self, row: Row, event: MetricsLogged, step: int, source: SourceState
    ) -> Iterator[TraceEvent]:
        """Yield the stretch since the last logged step, and its parts."""
        end_ns = row.envelope.wall_ns
        before, begin_ns = source.step, source.wall_ns
        if before == step:  # a wide row that came in parts
            return
        source.step, source.wall_ns = step, end_ns
        count = 1 if before is None or step < before else step - before
        usual = _seconds(event.values.get(STEP_SECONDS))
        if usual:
            # The first stretch of a session is no longer than its steps: before, it started up.
            began_ns = end_ns - int(usual * count * 1e9)
            is_first = before is None or begin_ns < began_ns - int(usual * 1e9)
            begin_ns = max(begin_ns, began_ns) if is_first else begin_ns
        begin_ns = min(begin_ns, end_ns)
        name = f"step {step:,}" if count == 1 else f"steps {step - count + 1:,} to {step:,}"
        yield self._span(name, source.pid, STEPS, begin_ns, end_ns, {"step": step, "steps": count})
        for part in PARTS:
            seconds = _seconds(event.values.get(f"train/{part}_seconds"))
            if seconds:
                part_end_ns = min(end_ns, begin_ns + int(seconds * count * 1e9))
                args = {"mean_seconds": seconds}
                yield self._span(part, source.pid, STEPS, begin_ns, part_end_ns, args)
                begin_ns = part_end_ns

    def _counters(
        self, row: Row, event: MetricsLogged, source: SourceState
    ) -> Iterator[TraceEvent]:
        """Yield the numbers of a row, those with one prefix together."""
        groups: dict[str, dict[str, float]] = {}
        for name, value in event.values.items():
            if isinstance(value, str) or not math.isfinite(value) or _NOT_COUNTED.fullmatch(name):
                continue
            if not self._per_core and _CORE.fullmatch(name):
                continue
            group, _, last = name.rpartition("/")
            number = int(value) if isinstance(value, bool) else value
            groups.setdefault(group or event.kind, {})[clean(last, 256)] = number
        for group, values in groups.items():
            counter = self._at("C", clean(group, 256), source.pid, 0, row.envelope.wall_ns)
            yield counter | {"args": values}

    # --- the format

    def _us(self, wall_ns: int) -> float:
        return max(0, wall_ns - (self.state.first_wall_ns or 0)) / 1000

    def _at(self, phase: str, name: str, pid: int, tid: int, wall_ns: int) -> TraceEvent:
        return {"ph": phase, "name": name, "pid": pid, "tid": tid, "ts": self._us(wall_ns)}

    def _end(self, pid: int, tid: int, wall_ns: int) -> TraceEvent:
        return {"ph": "E", "pid": pid, "tid": tid, "ts": self._us(wall_ns)}

    def _span(
        self, name: str, pid: int, tid: int, begin_ns: int, end_ns: int, args: dict[str, Any]
    ) -> TraceEvent:
        begin, end = self._us(begin_ns), self._us(end_ns)
        return self._at("X", name, pid, tid, begin_ns) | {"dur": end - begin, "args": args}

    def _instant(
        self, source: SourceState, wall_ns: int, text: str, args: dict[str, Any]
    ) -> TraceEvent:
        name = clean(text, 256)
        return self._at("i", name, source.pid, SESSION, wall_ns) | {"s": "p", "args": args}

    def _alert(self, phase: str, id: str, name: str, wall_ns: int) -> TraceEvent:
        pid = self.state.sources[id.partition(" ")[0]].pid
        return self._at(phase, name, pid, SESSION, wall_ns) | {"cat": "alert", "id": id}


def _seconds(value: object) -> float | None:
    """Return a value that can be a length of time, or None: anybody may log any number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= LENGTH_MAX_S else None


def _introduced(source: str, pid: int) -> Iterator[TraceEvent]:
    """Yield the names of a source and of its threads."""
    is_rank = source.startswith("rank")

    def told(what: str, tid: int, args: dict[str, Any]) -> TraceEvent:
        return {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args}

    yield told("process_name", 0, {"name": source})
    yield told("process_sort_index", 0, {"sort_index": pid if is_rank else 1_000_000 + pid})
    for tid in THREADS if is_rank else ():
        yield told("thread_name", tid, {"name": _THREAD_NAMES[tid]})
        yield told("thread_sort_index", tid, {"sort_index": tid})
