"""The console sink: a run as lines of text, for a terminal or a log file.

In: rows of one run.
Out: a line for each start, end, training or validation point, message and gap,
    and one for a host's hardware every 10 s of event time.
Never: prints colours, or characters that control the terminal.

    2026-07-31 12:00:00.250  rank0           train  step 1,200  loss 2.25  learning_rate 0.0003

A run without a RunStarted begins with a line of its id. Parts that are missing from
events are printed once for each reason.

Times are UTC. Lines are printed at least once: after a crash, what was printed
since the last commit is printed again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TextIO

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
    PartialEvent,
    RunFinished,
    RunStarted,
    Scalar,
)
from shared.text import clean
from telemetry.alerts.words import level_of, words_of
from telemetry.journal.rows import STEP, Row, RunContext, point_of
from telemetry.sinks.base import Position, SinkContext, SinkRejected, SinkUnavailable

REASONS_MAX: Final = 64
HARDWARE_INTERVAL_NS: Final = 10 * 1_000_000_000
_GIB: Final = 1024**3
LINE_MAX_CHARS: Final = 8_000


class ConsoleSink:
    """One run on a stream of text, stdout by default. Not thread-safe."""

    def __init__(self, context: SinkContext, stream: TextIO | None = None) -> None:
        self._context = context
        self._stream = stream or sys.stdout
        self._next_row = 0
        self._hardware_shown_ns: dict[str, int] = {}
        # Reasons for which a line "left out" was printed already.
        self._told: set[str] = set()

    def open(self, position: Position) -> int:
        self._next_row = position.row
        self._hardware_shown_ns = dict(position.state.get("hardware_shown_ns", {}))
        self._told = set(position.state.get("told", []))
        if position.row == 0 and self._context.run.has_no_introduction:
            self._print(f"run {clean(self._context.run_id)}: no RunStarted of it was seen")
        return position.row

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for line in self._lines(row):
                self._print(line)
            self._next_row = row.row + 1

    def commit(self) -> Position:
        self._flush()
        shown_ns = dict(self._hardware_shown_ns)
        return Position(self._next_row, {"hardware_shown_ns": shown_ns, "told": sorted(self._told)})

    def finish(self, status: str | None, exit_code: int | None) -> Position:
        return self.commit()

    def close(self) -> None:
        """Do nothing: the stream belongs to the caller."""

    def _lines(self, row: Row) -> Iterator[str]:
        try:
            event = row.envelope.event()
        except DecodeError:
            return
        if event is None or self._is_too_soon(row, event):
            return
        said = words(row, event)
        if said is not None:
            yield _line(row, *said)
        for text in self._left_out(event):
            yield _line(row, "left out", text)

    def _left_out(self, event: Event) -> Iterator[str]:
        """Yield a text on the missing parts of an event for each reason not printed before."""
        if not isinstance(event, PartialEvent):
            return
        for reason in dict.fromkeys(event.left_out.values()):
            if reason not in self._told and len(self._told) < REASONS_MAX:
                self._told.add(reason)
                names = [name for name, why in event.left_out.items() if why == reason]
                yield f"{', '.join(names)}: {reason}"

    def _is_too_soon(self, row: Row, event: Event) -> bool:
        """True if the host's hardware was printed less than an interval before or after this."""
        if not (isinstance(event, MetricsLogged) and event.kind == HARDWARE):
            return False
        now_ns = row.envelope.wall_ns
        shown_ns = self._hardware_shown_ns.get(row.source)
        # If the clock was set back by more than an interval, printing starts again.
        if shown_ns is not None and abs(now_ns - shown_ns) < HARDWARE_INTERVAL_NS:
            return True
        self._hardware_shown_ns[row.source] = now_ns
        return False

    def _print(self, line: str) -> None:
        # A terminal that can't show a character shows its escape.
        encoding = self._stream.encoding or "utf-8"
        shown = line.encode(encoding, "backslashreplace").decode(encoding)
        try:
            self._stream.write(shown + "\n")
        except (OSError, ValueError) as exc:
            raise _translated(exc) from exc

    def _flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as exc:
            raise _translated(exc) from exc


def _line(row: Row, kind: str, text: str) -> str:
    line = f"{row.source:<14}  {kind:<7}  {text}"
    return f"{utc(row.envelope.wall_ns)}  {clean(line, LINE_MAX_CHARS)}"


def words(row: Row, event: Event) -> tuple[str, str] | None:
    """Return (kind, text) of an event; None for events that the console does not print."""
    match event:
        case RunStarted():
            return "start", _started(event)
        case RunFinished(status=status, exit_code=code):
            return "end", status if code is None else f"{status}, exit code {code}"
        case MessageLogged(level=level, text=text):
            return level, text
        case AlertChanged():
            return level_of(event), words_of(event)
        case Gap(count=count, reason=reason):
            return "gap", f"{count:,} events missing: {reason}"
        case MetricsLogged(kind=kind) if kind == HARDWARE:
            return "hw", "  ".join(_hardware(event.values))
        case MetricsLogged(kind=kind) if kind in (TRAIN, VAL):
            return kind, _point(row, event)
    return None


def utc(wall_ns: int) -> str:
    """Return a wall time as UTC text, like `2026-07-31 12:00:00.250`."""
    moment = datetime.fromtimestamp(wall_ns // 10**9, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{wall_ns // 10**6 % 1000:03d}"


def _started(event: RunStarted) -> str:
    text = f"{event.project}/{event.name}, rank {event.rank} of {event.world_size} on {event.host}"
    if event.resumed_from_step is None:
        return text
    return f"{text}, resumed from step {event.resumed_from_step:,}"


def _point(row: Row, event: MetricsLogged) -> str:
    point = point_of(row, event, RunContext())
    values: Mapping[str, Scalar] = point.values if point else {}
    parts = [] if event.step is None else [f"step {event.step:,}"]
    for name, value in values.items():
        if name != STEP:
            parts.append(f"{name.removeprefix(f'{event.kind}/')} {_shown(value)}")
    return "  ".join(parts)


def _shown(value: Scalar) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


def _hardware(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the readings of the CPU, the memory and each GPU that are known."""
    for label, name in (("cpu", "cpu_percent"), ("memory", "memory_percent")):
        if name in values:
            yield f"{label} {_number(values[name], 0)}%"
    names = (name.split("/") for name in values if name.startswith("gpu/"))
    for index in dict.fromkeys(parts[1] for parts in names):
        readings = _gpu(values, f"gpu/{index}/")
        if readings:
            yield f"gpu {index}: {' '.join(readings)}"


def _gpu(values: Mapping[str, Any], prefix: str) -> list[str]:
    readings = (
        ("utilization_percent", 1, 0, "%"),
        ("memory_used_bytes", _GIB, 1, " GiB"),
        ("temperature_celsius", 1, 0, " °C"),
        ("power_watts", 1, 0, " W"),
    )
    return [
        _number(values[prefix + name], digits, unit_size) + unit
        for name, unit_size, digits, unit in readings
        if prefix + name in values
    ]


def _number(value: Any, digits: int, unit_size: int = 1) -> str:
    return f"{value / unit_size:.{digits}f}" if isinstance(value, int | float) else str(value)


def _translated(exc: Exception) -> SinkRejected | SinkUnavailable:
    """Return the sink error for a failed write: a closed pipe is final, a full disk is not."""
    if isinstance(exc, BrokenPipeError | ValueError):
        return SinkRejected(f"the console is closed: {exc}")
    return SinkUnavailable(f"the console can't be written to: {exc}")
