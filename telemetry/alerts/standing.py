"""Standing alerts: the conditions of a run that have begun and not ended, from its events.

In: the events of a run, in the order of its journal.
Out: the open alerts, as run.json holds them.
Never: more than STANDING_MAX; the first ones stay.

    {"source": "hardware:n1", "session": "...", "name": "gpu_throttled", "subject": "gpu/0",
     "severity": "warning", "text": "...", "wall_s": 1764316800.0}
"""

from __future__ import annotations

from typing import Any, Final

from shared.events import AlertChanged
from shared.ids import SIDECAR
from shared.text import clean

STANDING_MAX: Final = 256
TEXT_MAX_CHARS: Final = 300

Alerts = list[dict[str, Any]]


def after(
    standing: Alerts, source: str, session: str, event: AlertChanged, wall_s: float = 0.0
) -> Alerts:
    """Return the open alerts after one onset or end. wall_s: the time of the event."""
    key = source, event.name, event.subject
    others = [alert for alert in standing if key_of(alert) != key]
    if not event.is_active or len(others) >= STANDING_MAX:
        return others
    # A new text of a condition that is open does not begin it again.
    began_s = next((a.get("wall_s", wall_s) for a in standing if key_of(a) == key), wall_s)
    alert = {
        "source": source,
        "session": session,
        "name": event.name,
        "subject": event.subject,
        "severity": event.severity,
        "text": clean(event.text, TEXT_MAX_CHARS),
        "wall_s": began_s,
    }
    return [*others, alert]


def lasted_of(alert: dict[str, Any], wall_s: float) -> float | None:
    """Return how long an alert is open in s, None where that is not known."""
    began_s = alert.get("wall_s")
    if not isinstance(began_s, int | float) or not 0 < began_s <= wall_s:
        return None
    return wall_s - began_s


def without_former(standing: Alerts, source: str, session: str) -> Alerts:
    """Return the open alerts without those of former sessions of a source that speaks again.

    A sampler knows nothing of the onsets of the one before it. A sidecar does: it takes them
    over from the journal.
    """
    if source == SIDECAR:
        return standing
    return [a for a in standing if a.get("source") != source or a.get("session") == session]


def key_of(alert: dict[str, Any]) -> tuple[str, str, str]:
    """Return what identifies a condition: its source, name and subject."""
    return str(alert.get("source")), str(alert.get("name")), str(alert.get("subject"))
