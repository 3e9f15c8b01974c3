"""Words: an alert as a level and a line of text, the same in every view."""

from __future__ import annotations

from shared.events import AlertChanged

END_LEVEL = "info"


def level_of(event: AlertChanged) -> str:
    """Return the level of the message that an alert is shown as; its end is no trouble."""
    return event.severity if event.is_active else END_LEVEL


def title_of(event: AlertChanged) -> str:
    """Return the condition and its subject, like `gpu_throttled gpu/0`."""
    return f"{event.name} {event.subject}".rstrip()


def words_of(event: AlertChanged) -> str:
    """Return a line like `gpu_throttled gpu/0: hot` or `gpu_throttled gpu/0 is over after 12 s`."""
    text = f": {event.text}" if event.text else ""
    if event.is_active:
        return f"{title_of(event)}{text}"
    lasted = "" if event.lasted_s is None else f" after {duration(event.lasted_s)}"
    return f"{title_of(event)} is over{lasted}{text}"


def duration(seconds: float) -> str:
    """Return a time like `12 s`, `3 min` or `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
