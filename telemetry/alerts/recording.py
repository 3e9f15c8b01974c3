"""Recording: writes the onset and the end of each condition into the journals of its runs.

In: the conditions as the watching thread published them, and the open runs.
Out: `AlertChanged` events of the sidecar's own.
Never: the same onset twice: what a journal says is open decides, also after a restart.

Runs on the journal thread. An onset that the disk did not take before a crash is written
again by the next sidecar, if the condition still holds then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from shared.events import AlertChanged, Event
from shared.ids import SIDECAR
from telemetry.alerts.standing import lasted_of
from telemetry.alerts.verdicts import HOST, Active, Key

SAID_MAX: Final = 64
"""Alerts that are written in one poll; the others come in the next."""


class OpenRun(Protocol):
    """The part of an open run that alerts are written into."""

    run_id: str

    @property
    def is_started(self) -> bool: ...
    @property
    def is_ended(self) -> bool: ...
    @property
    def alerts(self) -> Sequence[dict[str, Any]]: ...
    def say(self, event: Event) -> None: ...


Run = TypeVar("Run", bound=OpenRun)


@dataclass(frozen=True)
class Published:
    """The conditions that are active, and those that are known to be over."""

    active: Mapping[Key, Active] = field(default_factory=dict)
    over: Mapping[Key, float | None] = field(default_factory=dict)
    """With how long each was active in s, None where that is not known."""


def record(
    published: Published,
    runs: Iterable[Run],
    is_of_host: Callable[[Run], bool],
    wall_s: float,
) -> None:
    """Write what has changed into each run that goes on.

    is_of_host: returns True for runs that record what happens to this machine. wall_s: now.
    """
    left = SAID_MAX
    for run in runs:
        if run.is_ended or not run.is_started:
            continue
        scopes = (run.run_id, HOST) if is_of_host(run) else (run.run_id,)
        for event in _changes(published, run, scopes, wall_s):
            if not left:
                return
            left -= 1
            run.say(event)


def _changes(
    published: Published, run: OpenRun, scopes: tuple[str, ...], wall_s: float
) -> list[AlertChanged]:
    """Return the events that a run lacks. A condition of the machine may end in any run."""
    own = [alert for alert in run.alerts if alert.get("source") == SIDECAR]
    standing = {(str(alert.get("name")), str(alert.get("subject"))): alert for alert in own}
    changes = []
    for key, active in published.active.items():
        if key.scope in scopes and (key.name, key.subject) not in standing:
            changes.append(onset_of(key, active))
    for (name, subject), alert in standing.items():
        keys = Key(run.run_id, name, subject), Key(HOST, name, subject)
        over = [key for key in keys if key in published.over]
        if over:
            # By the monotonic clock where this sidecar saw the onset, else by the wall clock.
            lasted_s = published.over[over[0]]
            lasted_s = lasted_of(alert, wall_s) if lasted_s is None else lasted_s
            changes.append(end_of(name, subject, lasted_s))
    return changes


def end_of(name: str, subject: str, lasted_s: float | None) -> AlertChanged:
    """Return the event that ends a condition."""
    return AlertChanged(name=name, subject=subject, is_active=False, lasted_s=lasted_s)


def onset_of(key: Key, active: Active) -> AlertChanged:
    """Return the event that begins a condition."""
    verdict = active.verdict
    return AlertChanged(
        name=key.name,
        subject=key.subject,
        severity=verdict.severity,
        text=verdict.text,
        value=verdict.value,
    )
