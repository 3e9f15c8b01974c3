"""Death: the sentence on a trainer that ended badly, from what its parent could see.

In: what `telemetry run` wrote of the command's end: exit code, OOM kills, standard error; or
what this machine can tell of a process that is no child of ours.
Out: the events that say so in the run.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Final

from shared.events import AlertChanged, Event, MessageLogged
from shared.ids import MAIN_SOURCE, SIDECAR
from telemetry.alerts.standing import Alerts, lasted_of
from telemetry.exits import Ending, ExitReport

DIED: Final = "trainer_died"
STDERR: Final = "stderr"
"""Level of the message that has the last lines of standard error."""
_USUAL: Final = {126: "it could not be started", 127: "it was not found"}


def events_of(report: ExitReport) -> Iterator[Event]:
    """Yield the events that a run gets for a command that ended badly."""
    yield AlertChanged(
        name=DIED,
        subject=MAIN_SOURCE,
        severity="error",
        text=sentence(report),
        value=report.exit_code,
    )
    if report.stderr:
        yield MessageLogged(level=STDERR, text=report.stderr)


def events_of_ending(ending: Ending) -> Iterator[Event]:
    """Yield the event that a run gets whose trainer went away without a word."""
    if ending.is_alive:
        yield MessageLogged(level="warning", text=sentence_of(ending))
    elif ending.exit_code != 0:
        yield AlertChanged(
            name=DIED,
            subject=MAIN_SOURCE,
            severity="error",
            text=sentence_of(ending),
            value=ending.exit_code,
        )


def sentence_of(ending: Ending) -> str:
    """Return what is known of the end of a process, in one sentence."""
    if ending.is_alive:
        return f"process {ending.pid} is still there, but says nothing: it may hang"
    group, machine = ending.kills.group, ending.kills.machine
    if ending.exit_code is not None:
        text = sentence(ExitReport(ending.exit_code & 0xFF, group))
    else:
        text = f"process {ending.pid} is gone, and the kernel does not tell by what"
        if group:
            text += f"; meanwhile it killed {group} processes of this container, for want of memory"
    if machine and not group:
        text += f"; meanwhile the kernel killed {machine} processes of this machine for memory"
    return text


def has_died(alerts: Alerts) -> bool:
    """Return True if the open alerts of a run say that its trainer died."""
    return any(a.get("name") == DIED and a.get("source") == SIDECAR for a in alerts)


def end_of_death(alerts: Alerts, wall_s: float) -> AlertChanged:
    """Return the event that a run gets when its trainer has started again. wall_s: now."""
    lasted_s = next((lasted_of(a, wall_s) for a in alerts if a.get("name") == DIED), None)
    return AlertChanged(name=DIED, subject=MAIN_SOURCE, is_active=False, lasted_s=lasted_s)


def sentence(report: ExitReport) -> str:
    """Return what the command ended by, like `killed by SIGKILL: the kernel was out of memory`."""
    name = _signal_of(report.exit_code)
    if not name:
        usual = _USUAL.get(report.exit_code)
        text = f"exit code {report.exit_code}" + (f": {usual}" if usual else "")
    else:
        text = f"ended by {name}"
    if report.oom_kills:
        return (
            f"{text}; meanwhile the kernel killed {report.oom_kills} processes of this container, "
            "because its memory was full"
        )
    if name == "SIGKILL" and report.oom_kills == 0:
        return f"{text}, not by the kernel for want of memory"
    return text


def _signal_of(exit_code: int) -> str:
    """Return the signal's name in the exit code of a shell, 128 + n; empty for another code."""
    try:
        return signal.Signals(exit_code - 128).name if exit_code > 128 else ""
    except ValueError:
        return ""
