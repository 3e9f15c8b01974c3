"""Recording: writes the onset and the end of each condition into the journals of its runs.

In: the conditions as the watching thread published them, and the open runs.
Out: `AlertChanged` events of the sidecar's own.
Never: the same onset twice: what a journal says is open decides, also after a restart.

Runs on the journal thread. An onset that the disk did not take before a crash is written
again by the next sidecar, if the condition still holds then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from shared.events import AlertChanged
from shared.ids import SIDECAR
from telemetry.alerts.verdicts import HOST, Active, Key
from telemetry.ingest.run import Run

SAID_MAX: Final = 64
"""Alerts that are written in one turn; the others come in the next."""


@dataclass(frozen=True)
class Published:
    """The conditions that are active, and those that are known to be over."""

    active: Mapping[Key, Active] = field(default_factory=dict)
    over: frozenset[Key] = frozenset()


def record(
    published: Published,
    runs: Iterable[Run],
    is_of_host: Callable[[Run], bool],
) -> None:
    """Write what has changed into each run that goes on.

    is_of_host: returns True for runs that record what happens to this machine.
    """
    left = SAID_MAX
    for run in runs:
        if run.is_ended or not run.is_started:
            continue
        scopes = (run.run_id, HOST) if is_of_host(run) else (run.run_id,)
        for event in _changes(published, run, scopes):
            if not left:
                return
            left -= 1
            run.say(event)


def _changes(published: Published, run: Run, scopes: tuple[str, ...]) -> list[AlertChanged]:
    """Return the events that a run lacks. A condition of the machine may end in any run."""
    own = [alert for alert in run.alerts if alert.get("source") == SIDECAR]
    standing = {(str(alert.get("name")), str(alert.get("subject"))) for alert in own}
    changes = []
    for key, active in published.active.items():
        if key.scope in scopes and (key.name, key.subject) not in standing:
            changes.append(onset_of(key, active))
    for name, subject in standing:
        keys = Key(run.run_id, name, subject), Key(HOST, name, subject)
        if any(key in published.over for key in keys):
            changes.append(AlertChanged(name=name, subject=subject, is_active=False))
    return changes


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
