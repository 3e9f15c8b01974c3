"""Marks: the events of a run that have no values, as moments and stretches of time.

In: the events of a run without values, in the order of its journal.
Out: marks as they were recorded, and from them those with a beginning and an end.
Never: more than MARKS_MAX of one chunk; what is left out is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from shared.events import AlertChanged, Event, Gap, MessageLogged, RunFinished, RunStarted
from shared.ids import MAIN_SOURCE, SIDECAR
from telemetry.journal.rows import Row
from telemetry.journal.scan import TAIL, Damage
from telemetry.sessions import begins_newest
from telemetry.views.column_state import OpenAlert, RawMark, State, TextChange

MARKS_MAX: Final = 5_000
ALERTS_MAX: Final = 1_000
TEXT_MAX_CHARS: Final = 2_000
STAGE: Final = "train/training_stage"
"""The text whose changes are the stages of a run."""

START, RESTART, FINISHED, STAGE_KIND, ALERT, MESSAGE, GAP, DAMAGE = (
    "start", "restart", "finished", "stage", "alert", "message", "gap", "damage",
)  # fmt: skip
_ALERT_END: Final = "alert_end"


class Mark(NamedTuple):
    """Something that happened in a run: kind is one of those above.

    step: the last step of rank 0 at that time; None before the first. level: info, warning,
    error or critical. end_wall_s: the end of an alert, or of a stage that another followed; None
    for what has no length, and where there is no end yet.
    """

    kind: str
    wall_s: float
    step: int | None
    text: str
    level: str
    source: str
    end_wall_s: float | None


class MarkTaker:
    """The marks since the last chunk. Not thread-safe."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._marks: deque[RawMark] = deque(maxlen=MARKS_MAX)

    @property
    def has_any(self) -> bool:
        return bool(self._marks)

    def taken(self) -> list[RawMark]:
        """Return the marks since the last call."""
        marks = list(self._marks)
        self._marks.clear()
        return marks

    def take(self, row: Row, event: Event | None, stream: int) -> None:
        """Take in an event without values."""
        match event:
            case MessageLogged(level=level, text=text):
                self._add(MESSAGE, row, text, level)
            case AlertChanged():
                self._take_alert(row, event, stream)
            case Gap(count=count, reason=reason):
                self._add(GAP, row, f"{count:,} events are missing: {reason}", "warning")
            case RunStarted() if row.source == MAIN_SOURCE:
                self._take_start(row, event)
            case RunFinished(status=status, exit_code=code) if row.source in (MAIN_SOURCE, SIDECAR):
                text = f"ended: {status}" + (f", exit code {code}" if code else "")
                self._add(FINISHED, row, text, "info" if status == "finished" else "warning")

    def take_damage(self, damage: Damage, wall_ns: int) -> None:
        """Note rows that are damaged or missing, at the time of the row before.

        A torn tail was never promised, and is no damage.
        """
        if damage.kind == TAIL:
            return
        last = "?" if damage.next_row is None else f"{damage.next_row - 1:,}"
        text = f"{damage.kind}: rows {damage.first_row:,} to {last} can't be read"
        self._push(RawMark(DAMAGE, wall_ns, self._state.step, text, "error", "", damage.first_row))

    def end_former_alerts(self, row: Row, stream: int) -> None:
        """End the alerts of a source's former sessions: a sampler knows nothing of those.

        A sidecar does: it takes them over from the journal.
        """
        if row.source == SIDECAR:
            return
        for alert in [a for a in self._state.alerts if a.source == row.source]:
            if alert.stream != stream:
                self._state.alerts.remove(alert)
                self._add(_ALERT_END, row, "", "info", alert.subject)

    def _take_start(self, row: Row, event: RunStarted) -> None:
        main = [s for s in self._state.streams if s.source == MAIN_SOURCE]
        is_first = sum(s.started_wall_ns is not None for s in main) <= 1
        step = event.resumed_from_step
        text = "started" if step is None else f"resumed from step {step:,}"
        if not begins_newest(row.source, event, is_late=row.is_late):
            text += ", as told later"
        self._add(START if is_first else RESTART, row, text, "info")

    def _take_alert(self, row: Row, event: AlertChanged, stream: int) -> None:
        subject = f"{event.name} {event.subject}".strip()
        alerts = self._state.alerts
        before = next((a for a in alerts if (a.source, a.subject) == (row.source, subject)), None)
        if event.is_active and before is not None and before.severity == event.severity:
            alerts[alerts.index(before)] = OpenAlert(row.source, subject, stream, event.severity)
            return
        if before is not None:
            alerts.remove(before)
            self._add(_ALERT_END, row, "", "info", subject)
        if event.is_active:
            self._add(ALERT, row, event.text or subject, event.severity, subject)
            if len(alerts) < ALERTS_MAX:
                alerts.append(OpenAlert(row.source, subject, stream, event.severity))

    def _add(self, kind: str, row: Row, text: str, level: str, subject: str = "") -> None:
        wall_ns, step = row.envelope.wall_ns, self._state.step
        self._push(RawMark(kind, wall_ns, step, text, level, row.source, row.row, subject))

    def _push(self, mark: RawMark) -> None:
        if len(self._marks) == MARKS_MAX:
            self._state.left_out_marks += 1
        if len(mark.text) > TEXT_MAX_CHARS:
            mark = msgspec.structs.replace(mark, text=mark.text[: TEXT_MAX_CHARS - 1] + "…")
        self._marks.append(mark)


def marks_of(raw: Iterable[RawMark], texts: Iterable[TextChange]) -> list[Mark]:
    """Return marks in the order of the journal, with ends, and the stages of rank 0 among them."""
    found: list[Mark] = []
    standing: dict[tuple[str, str], int] = {}
    for mark in raw:
        key = mark.source, mark.subject
        if mark.kind == _ALERT_END:
            if (at := standing.pop(key, None)) is not None:
                found[at] = found[at]._replace(end_wall_s=mark.wall_ns / 1e9)
            continue
        if mark.kind == ALERT:
            standing[key] = len(found)
        wall_s = mark.wall_ns / 1e9
        found.append(Mark(mark.kind, wall_s, mark.step, mark.text, mark.level, mark.source, None))
    return sorted([*found, *_stages(texts)], key=lambda mark: mark.wall_s)


def _stages(texts: Iterable[TextChange]) -> list[Mark]:
    changes = [t for t in texts if (t.source, t.name) == (MAIN_SOURCE, STAGE)]
    ends = [*(change.wall_ns / 1e9 for change in changes[1:]), None]
    return [
        Mark(STAGE_KIND, change.wall_ns / 1e9, change.step, change.text, "info", MAIN_SOURCE, end)
        for change, end in zip(changes, ends, strict=False)
    ]
