"""Status: how the end of a run is told to W&B.

In: the status and the exit code of a run's end.
Out: the exit code for W&B, and what it is told before.
Never: shows a run as finished that was not.

W&B knows finished (exit code 0), failed (another), and preempted (announced,
then another than 0). A lost run is failed, with a tag that says so.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from telemetry.sinks.wandb.client import Client
from telemetry.sinks.wandb.values import exit_code

LOST: Final = "lost"
PREEMPTED: Final = "preempted"
INTERRUPTED: Final = 1
"""The exit code of a session that ends while its run goes on."""


class Ending(NamedTuple):
    """The end of a run, as W&B takes it."""

    status: str
    code: int


def ending_of(status: str | None, exit_code: int | None) -> Ending:
    """The end that a run's RunFinished tells; one that tells nothing ended well."""
    status = status or "finished"
    return Ending(status, exit_code or (0 if status == "finished" else 1))


def say_ending(client: Client, ending: Ending, *, is_of_sweep: bool = False) -> None:
    """Say what has to be said before the run is finished with the exit code.

    A sweep's run is never announced as preempted: its agent would be given it once more.

    Raises:
        SinkUnavailable: wandb-core is gone.
    """
    if ending.status == LOST:
        client.add_tag(LOST)
    if ending.status == PREEMPTED and not is_of_sweep:
        client.mark_preempting()
    summary: dict[str, Any] = {"telemetry/run_status": ending.status}
    if exit_code(ending.code) != ending.code:
        summary["telemetry/exit_code"] = ending.code
    client.update_summary(summary)
