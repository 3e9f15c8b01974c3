"""Last words: a short report on a run that failed or was lost, from its journal.

In: the rows of a journal, in order.
Out: lines: the cause as far as it is known, the last rows of training, the readings of the
last minute, the alerts that stood open, and the last lines of standard error.
Never: keeps more than a few rows and one minute of readings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from shared.events import (
    HARDWARE,
    AlertChanged,
    Event,
    MessageLogged,
    MetricsLogged,
    RunStarted,
    Scalar,
)
from shared.ids import MAIN_SOURCE
from telemetry.alerts.standing import Alerts, after, without_former
from telemetry.alerts.words import words_of
from telemetry.ingest.death import DIED, STDERR
from telemetry.journal.rows import Row

ROWS_SHOWN: Final = 3
VALUES_SHOWN: Final = 8
MINUTE_NS: Final = 60 * 10**9
SAMPLES_MAX: Final = 1_300
"""Samples that are kept: one minute at 20 Hz, and some."""
STDERR_LINES: Final = 20
READINGS: Final = (
    ("cpu_percent", "cpu", 1, "%"),
    ("memory_percent", "memory", 1, "%"),
    ("cgroup/memory_used_bytes", "memory of the container", 2**30, " GiB"),
    ("gpu/0/utilization_percent", "gpu 0", 1, "%"),
    ("gpu/0/memory_used_bytes", "memory of gpu 0", 2**30, " GiB"),
    ("gpu/0/temperature_celsius", "gpu 0", 1, " C"),
)


@dataclass
class LastWords:
    """The last rows of a run, kept while its journal is read. Not thread-safe."""

    alerts: Alerts = field(default_factory=list)
    onsets: int = 0
    _rows: deque[MetricsLogged] = field(default_factory=lambda: deque(maxlen=ROWS_SHOWN))
    _samples: deque[tuple[int, MetricsLogged]] = field(
        default_factory=lambda: deque(maxlen=SAMPLES_MAX)
    )
    _cause: str = ""
    _stderr: str = ""

    def see(self, row: Row, event: Event | None) -> None:
        """Take in one row."""
        if not row.is_late:
            self.alerts = without_former(self.alerts, row.source, row.session)
        match event:
            case MetricsLogged(kind=kind) if kind == HARDWARE:
                self._samples.append((row.envelope.wall_ns, event))
            case MetricsLogged() if row.source == MAIN_SOURCE and _is_of_training(event):
                self._rows.append(event)
            case AlertChanged() if not row.is_late:
                self.alerts = after(self.alerts, row.source, row.session, event)
                self.onsets += event.is_active
                if event.name == DIED:
                    self._cause = words_of(event) if event.is_active else ""
            case MessageLogged(level=level, text=text) if level == STDERR:
                self._stderr = text
            case RunStarted() if row.source == MAIN_SOURCE and not row.is_late:
                # A new start: what was said of the former one is not the end any more.
                self._cause = self._stderr = ""

    def lines(self, status: str | None) -> Iterator[str]:
        """Yield the open alerts; and the report, if the run failed or was lost."""
        for alert in self.alerts:
            if alert["name"] != DIED:
                subject = f" {alert['subject']}" if alert["subject"] else ""
                yield f"alert: {alert['name']}{subject} ({alert['severity']}): {alert['text']}"
        if self.onsets > len(self.alerts):
            yield f"alerts: {self.onsets:,} in all, {len(self.alerts)} open at the end"
        if self._cause or status in ("failed", "lost"):
            yield from self._report()

    def _report(self) -> Iterator[str]:
        yield f"died: {self._cause or 'the cause is not known; see the last lines below'}"
        for event in self._rows:
            yield f"  row: {_shown(event)}"
        for text in self._minute():
            yield f"  last minute: {text}"
        for line in self._stderr.splitlines()[-STDERR_LINES:]:
            yield f"  stderr: {line}"

    def _minute(self) -> Iterator[str]:
        if not self._samples:
            return
        since_ns = self._samples[-1][0] - MINUTE_NS
        samples = [event.values for wall_ns, event in self._samples if wall_ns >= since_ns]
        for name, label, divisor, unit in READINGS:
            found = [v / divisor for s in samples if (v := _number(s.get(name))) is not None]
            if found:
                span = f"from {min(found):.4g} to {max(found):.4g}{unit}"
                yield f"{label} {span}, at the end {found[-1]:.4g}{unit}"


def _is_of_training(event: MetricsLogged) -> bool:
    return not all(name.startswith("telemetry/") for name in event.values)


def _number(value: Scalar | None) -> float | None:
    return None if value is None or isinstance(value, str) else float(value)


def _shown(event: MetricsLogged) -> str:
    step = "" if event.step is None else f"step {event.step:,}  "
    values = list(event.values.items())[:VALUES_SHOWN]
    shown = (f"{n} {v:.6g}" if isinstance(v, float) else f"{n} {v}" for n, v in values)
    return step + "  ".join(shown)
