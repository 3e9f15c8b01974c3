"""Run state: the one word for how a run stands, in every view of it."""

from __future__ import annotations

from typing import Final

from telemetry.run_dir import ENDED, RUNNING, RunFile

SILENT: Final = "silent"
UNKNOWN: Final = "unknown"
SILENT_S: Final = 120.0
"""A run at work without an event for so long is shown as silent."""


def state_of(run: RunFile, last_s: float | None, now_s: float, *, is_attended: bool) -> str:
    """Return running, silent, unknown, or as the run ended: finished, failed, preempted, lost.

    last_s, now_s: Unix times in s of its last event, None if there is none, and of now.
    is_attended: a sidecar is at work in its data directory. Of what a dead one left, nobody can
    say that it runs. A run without a readable run.json is unknown. The word may come from a
    producer: it is to be cleaned where it is shown.
    """
    if run.is_ended:
        return run.status or ENDED
    if not run.state:
        return UNKNOWN
    is_silent = not is_attended or (last_s is not None and now_s - last_s > SILENT_S)
    return SILENT if is_silent else RUNNING
