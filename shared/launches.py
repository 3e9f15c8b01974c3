"""Launches: the link from a run to the `telemetry run` command that started it.

With this id the sidecar can record the exit code of the command for the right run.

In: the environment that `telemetry run` gave its command.
Out: the id of that launch, in the RunStarted of every run that the command begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from shared.events import RunStarted
from shared.ids import SESSION

LAUNCH_VARIABLE: Final = "TELEMETRY_LAUNCH_ID"
"""Set by `telemetry run` for its command, and inherited by every child process."""


def with_launch_id(event: RunStarted, environ: Mapping[str, str]) -> RunStarted:
    """Return the event with the launch id of this process filled in, if it has one."""
    launch_id = environ.get(LAUNCH_VARIABLE, "")
    if event.launch_id or not SESSION.fullmatch(launch_id):
        return event
    return msgspec.structs.replace(event, launch_id=launch_id)
