"""Writing of a run's checkpoints, and resuming from one.

In: the position of a run; the parts whose state a checkpoint keeps.
Out: checkpoints, and a line about each for the user; the position that a checkpoint has.
Never: ends a run because a checkpoint can't be written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.reporting.reports import Reporter
from trainer.training.checkpoint import Checkpoint, CheckpointDirectory
from trainer.training.distillation import Distillation
from trainer.training.random_states import random_states
from trainer.training.resume import Position, capture, has_finite_state, restore
from trainer.training.step import Stepper


class CheckpointWriter:
    """The checkpoints of one run, which the first of its processes writes.

    facts holds the values of a checkpoint that are the same after every step. saved_step and
    saved_path are those of the newest checkpoint of this run. Not thread-safe.
    """

    def __init__(
        self,
        *,
        facts: dict[str, Any],
        stepper: Stepper,
        optimizer: torch.optim.Optimizer,
        distillation: Distillation,
        checkpoints: CheckpointDirectory,
        reporter: Reporter,
    ) -> None:
        self._facts, self._stepper, self._optimizer = facts, stepper, optimizer
        self._distillation, self._checkpoints = distillation, checkpoints
        self._reporter, self._processes = reporter, stepper.processes
        self.saved_step: int | None = None
        self.saved_path: Path | None = None

    def write(self, position: Position) -> None:
        """Write a checkpoint. If that fails the user is told, and the run goes on.

        All processes have to call this at the same step.
        """
        random = self._processes.gather(random_states())
        path = self._write(position, random) if self._processes.is_first else None
        [path] = self._processes.share([path])
        if path is not None:
            self.saved_step, self.saved_path = position.step, path

    def write_last_good(self, position: Position) -> None:
        """Write a checkpoint of a run that ends now, if its weights are finite.

        The processes may notice at different steps that the run has diverged, so the first
        does not exchange anything with the others here.
        """
        if self._processes.is_first and has_finite_state(self._stepper.model):
            self.saved_path = self._write(position, [random_states()]) or self.saved_path

    def way_out(self) -> str:
        """Return a clause that says where a run that has diverged can go on from."""
        if not self._processes.is_first:
            return "the first process says where to go on from"
        if self.saved_path is None:
            return "no checkpoint was written before; start anew"
        return f"go on from the last good one with --resume_from {self.saved_path}"

    def restore(self, checkpoint: Checkpoint, path: Path | None, total_steps: int) -> Position:
        """Restore the run's parts from a checkpoint with the same identity."""
        self.saved_path = path
        return restore(checkpoint, self._stepper, self._optimizer, self._distillation, total_steps)

    def _write(self, position: Position, random: list[Any]) -> Path | None:
        """Write all that restore() needs and return its path; None if that is not possible."""
        state = capture(self._stepper, self._optimizer, self._distillation, position, random)
        try:
            path = self._checkpoints.save({**self._facts, **state})
        except OSError as exc:
            self._reporter.tell(
                f"The checkpoint of step {position.step:,} cannot be written: {exc}", "error"
            )
            return None
        self._reporter.tell(f"Checkpoint of step {position.step:,}: {path}")
        return path
