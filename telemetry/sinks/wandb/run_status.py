"""Status: reports the end of a run to W&B.

In: the status and the exit code of a run's end.
Out: the exit code for W&B, and tags and summary values sent before it.
Never: shows a run as finished that was not.

W&B knows finished (exit code 0), failed (another exit code), and preempted (announced,
then an exit code other than 0). A lost run is shown as failed, with the tag `lost`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from telemetry.sinks.wandb.client import Client
from telemetry.sinks.wandb.values import exit_code

LOST: Final = "lost"
PREEMPTED: Final = "preempted"
INTERRUPTED: Final = 1
"""Exit code of a session that ends before its run does."""


class Ending(NamedTuple):
    """Status and exit code of the end of a run, for W&B."""

    status: str
    code: int


def ending_of(status: str | None, exit_code: int | None) -> Ending:
    """Return the ending for a status and an exit code; without a status the run finished."""
    status = status or "finished"
    return Ending(status, exit_code or (0 if status == "finished" else 1))


def say_ending(client: Client, ending: Ending, *, is_of_sweep: bool = False) -> None:
    """Send the tag, mark and summary that have to come before the run is finished.

    A sweep's run is never marked as preempted: W&B would give it to an agent again.

    Raises:
        SinkUnavailable: wandb-core has ended.
    """
    if ending.status == LOST:
        client.add_tag(LOST)
    if ending.status == PREEMPTED and not is_of_sweep:
        client.mark_preempting()
    summary: dict[str, Any] = {"telemetry/run_status": ending.status}
    if exit_code(ending.code) != ending.code:
        summary["telemetry/exit_code"] = ending.code
    client.update_summary(summary)
