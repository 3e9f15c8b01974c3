"""The host's own run, which records the hardware while no training run is active."""

from __future__ import annotations

import contextlib
import os

from shared.events import FINISHED, RunFinished, RunStarted
from shared.ids import host_run_id
from telemetry.ingest.run import Run
from telemetry.ingest.runs import Runs
from telemetry.journal.writer import JournalFull

PROJECT = "hardware"


class HostRun:
    """Opens the host's run when it is first needed. Not thread-safe."""

    def __init__(self, host: str, wandb_mode: str, *, is_enabled: bool) -> None:
        self.host = host
        self.run_id = host_run_id(host)
        self._wandb_mode = wandb_mode
        self._is_enabled = is_enabled
        self._is_open = False

    def opened(self, runs: Runs) -> list[Run]:
        """Return the host's run, started if need be; an empty list where it is not wanted."""
        if not self._is_enabled:
            return []
        run = runs.open(self.run_id)
        if not self._is_open:
            self._is_open = True
            run.reopen(is_new_session=True)
            run.say(
                RunStarted(
                    project=PROJECT,
                    name=self.host,
                    tags=["hardware"],
                    wandb_mode=self._wandb_mode,
                    host=self.host,
                    pid=os.getpid(),
                )
            )
        return [run]

    def finish(self, runs: Runs) -> None:
        """End the host's run, because the sidecar stops."""
        run = runs.get(self.run_id) if self._is_open else None
        if run is not None:
            run.say(RunFinished(status=FINISHED, exit_code=0))
            # Without room on disk the run stays open, and the next sidecar continues it.
            with contextlib.suppress(JournalFull):
                run.sync()
                run.end()
