"""Follow: reads the journal of one run as it grows, into series and latest values.

In: the journal of a run, live, ended, or copied from elsewhere.
Out: `RunView`, brought up to date by `poll`, a bounded time each.
Never: writes, or holds more than a bounded number of names, points and messages.

Not thread-safe: one thread polls and takes what it needs.
"""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, NamedTuple

from shared.events import (
    HARDWARE,
    AlertChanged,
    DecodeError,
    Gap,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
    Scalar,
)
from shared.ids import host_of
from telemetry.journal.layout import read_mark
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.rows import Row, RunContext, point_of
from telemetry.views.series import Curve, Window

NAMES_MAX: Final = 4096
MESSAGES_MAX: Final = 500
ALERTS_MAX: Final = 1000
WINDOW_S: Final = 3600.0
TAIL_ROWS: Final = 7200
"""Rows read of a run of the host's own: it has no curve that begins at its first row."""


class Message(NamedTuple):
    """Something said in a run: level is info, warning or error."""

    wall_s: float
    level: str
    source: str
    text: str


class Alert(NamedTuple):
    """A condition that has begun and not ended: source and subject say where it is."""

    wall_s: float
    severity: str
    source: str
    name: str
    subject: str
    text: str


class Hardware:
    """The machine named by one sampler: its latest values, and those of the last hour."""

    def __init__(self) -> None:
        self.values: dict[str, Scalar] = {}
        self.wall_s = 0.0
        self.windows: dict[str, Window] = {}

    def take(self, wall_s: float, values: dict[str, Scalar]) -> None:
        # Only what the last sample has: a device that is gone shows no old value.
        self.values, self.wall_s = values, wall_s
        for name, value in values.items():
            number = as_number(value)
            if number is None:
                continue
            window = self.windows.get(name)
            if window is None:
                if len(self.windows) >= NAMES_MAX:
                    continue
                window = self.windows[name] = Window(WINDOW_S)
            window.add(wall_s, number)


class RunView:
    """A run's journal as a screen needs it."""

    def __init__(
        self, journal: Path, *, is_recorded: bool = False, from_tail: bool = False
    ) -> None:
        """Open a journal. is_recorded: nobody writes it any more.

        from_tail: only the last rows are wanted, of a run that has hardware alone.

        Raises:
            NotAJournal: there is no journal yet.
        """
        self._journal = journal
        mark = read_mark(journal)
        self.rows_on_disk = mark.next_row if mark else 0
        first_row = max(0, self.rows_on_disk - TAIL_ROWS) if from_tail else 0
        self._reader = JournalReader(journal, first_row, is_recorded=is_recorded)
        self._first_row = first_row
        self._context = RunContext()
        self.latest: dict[str, Scalar] = {}
        self.curves: dict[str, Curve] = {}
        self.hardware: dict[str, Hardware] = {}
        self.messages: deque[Message] = deque(maxlen=MESSAGES_MAX)
        self.step: int | None = None
        self.last_wall_s = 0.0
        self.gap_events = 0
        self.damaged_parts = 0
        """Damaged parts of the journal, and rows whose event can't be decoded."""
        self._alerts: dict[tuple[str, str, str], Alert] = {}
        self._sessions: dict[str, str] = {}
        self._steps: Window = Window(WINDOW_S)

    def close(self) -> None:
        self._reader.close()

    @property
    def read_ratio(self) -> float:
        """Share of the rows on disk that have been read."""
        wanted = self.rows_on_disk - self._first_row
        if wanted <= 0:
            return 1.0
        return min(1.0, (self._reader.next_row - self._first_row) / wanted)

    def poll(self, seconds_max: float) -> bool:
        """Read on for at most about seconds_max; return True if nothing more is on disk."""
        deadline_s = time.monotonic() + seconds_max
        mark = read_mark(self._journal)
        if mark is not None:
            self.rows_on_disk = mark.next_row
        while time.monotonic() < deadline_s:
            batch = self._reader.read()
            for row in batch.rows:
                self._take(row)
            self.damaged_parts += len(batch.damage)
            if batch.is_end:
                return True
        return False

    @property
    def steps_per_second(self) -> float | None:
        """Optimizer steps a second over the last minutes; None before there are two."""
        points = self._steps.points
        if len(points) < 2:
            return None
        recent = [point for point in points if point.x >= points[-1].x - 300]
        first, last = recent[0], recent[-1]
        if last.x <= first.x or last.y <= first.y:
            return None
        return (last.y - first.y) / (last.x - first.x)

    @property
    def open_alerts(self) -> tuple[Alert, ...]:
        """Conditions that have begun and not ended, the newest first."""
        return tuple(sorted(self._alerts.values(), reverse=True))

    def _take(self, row: Row) -> None:
        wall_s = row.envelope.wall_ns / 1e9
        try:
            event = row.envelope.event()
        except DecodeError:
            self.damaged_parts += 1
            return
        self._context = self._context.after(row, event)
        if self._sessions.get(row.source, row.session) != row.session:
            # Whoever starts anew says again what is still so: what the one before left is over.
            self._alerts = {key: a for key, a in self._alerts.items() if key[0] != row.source}
        self._sessions[row.source] = row.session
        if not host_of(row.source):
            self.last_wall_s = max(self.last_wall_s, wall_s)
        match event:
            case MetricsLogged(kind=kind) if kind == HARDWARE:
                host = host_of(row.source) or row.source
                self.hardware.setdefault(host, Hardware()).take(wall_s, dict(event.values))
            case MetricsLogged():
                self._take_metrics(row, event, wall_s)
            case MessageLogged(level=level, text=text):
                self.messages.append(Message(wall_s, level, row.source, text))
            case AlertChanged():
                self._take_alert(row, event, wall_s)
            case Gap(count=count, reason=reason):
                self.gap_events += count
                text = f"{count:,} events are missing: {reason}"
                self.messages.append(Message(wall_s, "warning", row.source, text))
            case RunStarted(resumed_from_step=step) if row.source == "rank0":
                text = "started" if step is None else f"resumed from step {step:,}"
                self.messages.append(Message(wall_s, "info", row.source, text))
                # Speed is of the present session: a restart goes back some steps.
                self._steps = Window(WINDOW_S)
            case RunFinished(status=status, exit_code=code):
                text = f"ended: {status}" + (f", exit code {code}" if code else "")
                self.messages.append(Message(wall_s, "info", row.source, text))

    def _take_alert(self, row: Row, event: AlertChanged, wall_s: float) -> None:
        key = (row.source, event.name, event.subject)
        text = event.text or f"{event.name} {event.subject}".strip()
        if event.is_active:
            alert = Alert(wall_s, event.severity, row.source, event.name, event.subject, text)
            known = len(self._alerts) < ALERTS_MAX or key in self._alerts
            if known:
                self._alerts[key] = alert
        else:
            self._alerts.pop(key, None)
            text = f"over: {text}"
        level = event.severity if event.is_active else "info"
        self.messages.append(Message(wall_s, level, row.source, text))

    def _take_metrics(self, row: Row, event: MetricsLogged, wall_s: float) -> None:
        point = point_of(row, event, self._context)
        if point is None:
            return
        if point.step is not None and row.source == "rank0":
            self.step = point.step
            self._steps.add(wall_s, point.step)
        for name, value in point.values.items():
            if name not in self.latest and len(self.latest) >= NAMES_MAX:
                continue
            self.latest[name] = value
            number = as_number(value, finite=False)
            if number is not None and point.step is not None:
                self.curves.setdefault(name, Curve()).add(point.step, number)


def as_number(value: Any, *, finite: bool = True) -> float | None:
    """Return a value as a float, or None for a text, and for NaN and infinity where finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value)
    return None if finite and not math.isfinite(number) else number


def opened(journal: Path, **options: bool) -> RunView | None:
    """Return the view of a journal, or None while it is not there."""
    try:
        return RunView(journal, **options)
    except (NotAJournal, OSError):
        return None
