"""The training loop: batch, forward, backward, step, observe, checkpoint.

In: a model, an optimizer and data; a plan; the state of a checkpoint.
Out: a trained model and its checkpoints; metrics and messages for the reporter.
Never: reads a number from the device while it trains; see scalar_copies.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data.masking import Batch
from trainer.errors import TrainingDiverged
from trainer.model.diagnostics.diagnostics import Diagnostics
from trainer.model.diagnostics.flips import is_watched
from trainer.model.precision import stage_label
from trainer.model.schedule import ScheduleState, last_trained, learning_rate
from trainer.plan import Plan
from trainer.reporting.reports import Reading, Reporter
from trainer.training.block_profile import BlockProfile
from trainer.training.checkpoint import Checkpoint
from trainer.training.checkpoint_writer import CheckpointWriter
from trainer.training.distillation import Distillation
from trainer.training.evaluate import evaluate
from trainer.training.phases import CHECKPOINT, EVALUATION, INPUT, OPTIMIZER, Spans
from trainer.training.resume import Position, has_finite_state
from trainer.training.scalar_copies import Numbers, ScalarCopies
from trainer.training.step import Stepper, leave_out_a_ruinous_step
from trainer.training.stop import StopRequest
from trainer.training.window import Window

GRAD_NORM = "train/grad_norm"


class Training:
    """A run in progress.

    batches_from gives the training batches from a position on, validation the batches of one
    evaluation. Each process has its own Training; all of them do the same things at the same
    step, and only the first writes checkpoints and reports for the run. Not thread-safe.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        stepper: Stepper,
        optimizer: torch.optim.Optimizer,
        distillation: Distillation,
        batches_from: Callable[[int], Iterator[Batch]],
        validation: Callable[[], Iterator[Batch]],
        reporter: Reporter,
        writer: CheckpointWriter,
        stop: StopRequest,
    ) -> None:
        self.plan, self.stepper, self.optimizer = plan, stepper, optimizer
        self.distillation = distillation
        self.model, self.device = stepper.model, stepper.device
        self.processes = stepper.processes
        self.batches_from, self.validation = batches_from, validation
        self.reporter, self.writer, self.stop = reporter, writer, stop
        self.diagnostics = Diagnostics(self.model)
        self.copies: ScalarCopies[Reading] = ScalarCopies(self.device)
        self.profile = BlockProfile(self.model.blocks if plan.profile_blocks else (), self.device)
        self.window = Window(torch.zeros((), device=self.device))
        self.spans = Spans(self.device)
        self.step = self.position = 0
        self.stage: str | None = None
        self.is_stopping = False
        self.val_loss: float | None = None
        self.best_val_loss: float | None = None
        self.evaluated_step: int | None = None

    @property
    def is_finished(self) -> bool:
        """True if the last step of the plan is done."""
        return self.step >= self.plan.total_steps

    def run(self) -> None:
        """Train to the last step, or until a stop is requested; then write a checkpoint.

        Raises:
            TrainingDiverged: the loss is no longer a number.
        """
        batches = self.batches_from(self.position)
        self.reporter.begin(self.step, self.plan.total_steps)
        self.window.started_s = time.perf_counter()
        self.model.train()

        while not self.is_finished and not self._is_asked_to_stop():
            self._take_step(batches)

        # At the end: validate unless asked to stop, save, and wait for the last numbers.
        self.is_stopping = self.processes.any(self.is_stopping or self.stop.is_requested())
        if not self.is_stopping and self.evaluated_step != self.step:
            self.evaluate()
        if self.writer.saved_step != self.step:
            self.save()
        self._report(self.copies.wait())
        self.reporter.spans(self.spans.arrived(wait=True))
        self.reporter.advance_to_end(self.profile.arrived())

    def _take_step(self, batches: Iterator[Batch]) -> None:
        """Take one optimizer step, and whatever is due after it."""
        plan, stepper, number = self.plan, self.stepper, self.step + 1
        is_quant_due = _is_due(plan.quant_interval, number)
        is_log_due = _is_due(plan.log_interval, number)
        # The schedule of this step, and the readings to be taken in it.
        stepper.begin()
        schedule = self._apply_schedule()
        rate = self._set_learning_rate(schedule)
        self._prepare_readings(number, is_quant_due)

        # Batches, forward, backward.
        micro_batches = [next(batches) for _ in range(plan.accumulation)]
        stepper.parts.mark(INPUT)
        with self.profile.step(number) if is_log_due else nullcontext():
            loss = stepper.accumulate_gradients(micro_batches)
        stepper.scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), plan.grad_clip or math.inf)
        if is_quant_due:  # before the update, which clears the gradients that it reads
            self._send_diagnostics(number)

        # Step of the optimizer, then of the averaged teacher.
        leave_out_a_ruinous_step(self.optimizer, grad_norm)
        stepper.update(self.optimizer)
        self.step, self.position = number, self.position + plan.rows_per_step
        self.distillation.end_step(self.step)
        stepper.parts.end(OPTIMIZER)

        # Observe, validate, save; report the numbers that have arrived by now.
        tokens = sum(b.tokens + b.tokens_elsewhere for b in micro_batches)
        self.window.add(loss, tokens, stepper.is_empty)
        if is_log_due:
            self._log(schedule, rate, grad_norm)
        if _is_due(plan.eval_interval, self.step):
            self.window.pause(self.evaluate)
        if _is_due(plan.save_interval, self.step):
            self.window.pause(self.save)
        self._report(self.copies.arrived())
        self.reporter.advance(self.profile.arrived())

    def evaluate(self) -> None:
        """Validate the model with the quantizers of the last step that was taken.

        The next step may be in another stage: its weights would be ternary without one step
        of training as such.
        """
        self.model.apply_schedule(last_trained(self.step), self.plan.total_steps)
        with self.spans.of(EVALUATION, self.step):
            found = evaluate(
                self.model, self.validation(), self.device, self.stop.is_requested, self.processes
            )
        if found is not None:
            self.evaluated_step = self.step
            values = {
                "val/loss": found.loss,
                "val/perplexity": found.loss.exp(),
                "val/accuracy": found.accuracy,
            }
            self.copies.send(Reading("val", self.step), values)

    def save(self) -> None:
        """Write a checkpoint. If that fails the user is told, and the run goes on.

        Raises:
            TrainingDiverged: the loss or the weights are NaN or infinite.
        """
        self._report(self.copies.wait())
        # These two wait for the device, as the checkpoint does when it copies the weights.
        loss_sum = self.processes.sum_(self.window.loss_sum.clone()).item()
        if not math.isfinite(loss_sum) or not has_finite_state(self.model):
            raise self._diverged(self.step)
        with self.spans.of(CHECKPOINT, self.step):
            self.writer.write(self._position(loss_sum, self.window.steps))

    def load(self, checkpoint: Checkpoint, path: Path | None = None) -> None:
        """Go on from a checkpoint of a run with the same identity."""
        position = self.writer.restore(checkpoint, path, self.plan.total_steps)
        self.step, self.position = position.step, position.rows
        self.best_val_loss = position.best_val_loss
        self.window.steps = position.window_steps
        # The saved sum is that of all processes, so only the first of them starts with it.
        if self.processes.is_first:
            self.window.loss_sum.fill_(position.window_loss_sum)

    def _position(self, window_loss_sum: float = 0.0, window_steps: int = 0) -> Position:
        return Position(self.step, self.position, self.best_val_loss, window_loss_sum, window_steps)

    def _is_asked_to_stop(self) -> bool:
        self.is_stopping = self.processes.agree_to_stop(
            self.stop.is_requested(), self.stepper.work.seconds()
        )
        return self.is_stopping

    def _apply_schedule(self) -> ScheduleState:
        """Set bits, QDrop and the teacher's weight for this step; report another stage."""
        schedule: ScheduleState = self.model.apply_schedule(self.step, self.plan.total_steps)
        self.distillation.begin_step(self.step, self.plan.total_steps)
        label = stage_label(self.model.config, schedule.stage)
        if label != self.stage:
            self.reporter.stage(self.step, self.stage, label)
            self.stage = label
        return schedule

    def _set_learning_rate(self, schedule: ScheduleState) -> float:
        rate = learning_rate(
            self.step,
            base=self.plan.learning_rate,
            warmup_steps=self.plan.warmup_steps,
            total_steps=self.plan.total_steps,
            kind=self.plan.scheduler,
            factor=schedule.learning_rate_factor,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate

    def _prepare_readings(self, number: int, is_quant_due: bool) -> None:
        """Switch on the readings of a step whose diagnostics are due, and watch its codes."""
        if is_quant_due:
            self.diagnostics.observe(True)
        if is_watched(number, self.plan.quant_interval):
            self.diagnostics.watch_codes(self.step)

    def _send_diagnostics(self, number: int) -> None:
        """Start the copy of scalars and histograms of the quantizers to the host."""
        detail = self.plan.quant_detail
        values = self.diagnostics.collect(detail)
        if self.stepper.is_empty:  # nothing was predicted, so all gradients are 0
            values = {name: v for name, v in values.items() if "/gradient_" not in name}
        for name, histogram in self.diagnostics.histograms(detail).items():
            values |= {f"{name}/edges": histogram.edges, f"{name}/counts": histogram.counts}
        self.copies.send(Reading("quant", number), values)
        self.diagnostics.observe(False)

    def _log(self, schedule: ScheduleState, rate: float, grad_norm: Tensor) -> None:
        values: dict[str, Any] = {
            "train/learning_rate": rate,
            "train/qdrop_probability": schedule.qdrop_probability,
            "train/training_stage": stage_label(self.model.config, schedule.stage),
            "train/epoch": self.position / self.plan.rows_per_epoch,
            "train/global_step": self.step,
            **self.window.speed(),
            **self.stepper.parts.take(),
        }
        if self.device.type == "cuda":
            values["torch_gpu_memory_allocated"] = torch.cuda.memory_allocated(self.device) / 1e9
            values["torch_gpu_memory_reserved"] = torch.cuda.memory_reserved(self.device) / 1e9
        self.reporter.work(self.step, values, self.processes.take_work_seconds())
        # A number without a value is left out: without a predicted token there is no loss.
        numbers = {GRAD_NORM: grad_norm}
        if self.window.steps:
            numbers["train/loss"] = self.processes.sum_(self.window.mean_loss())
        if not self.stepper.is_empty:
            numbers |= self.distillation.numbers(self.processes)
        self.copies.send(Reading("train", self.step, values), numbers)
        self.window = Window(torch.zeros((), device=self.device))

    def _report(self, arrived: list[tuple[Reading, Numbers]]) -> None:
        self.reporter.spans(self.spans.arrived())
        for reading, numbers in arrived:
            self.reporter.report(reading, numbers)
            if reading.kind == "val":
                self.val_loss = numbers["val/loss"]
                best = math.inf if self.best_val_loss is None else self.best_val_loss
                if math.isfinite(self.val_loss):
                    self.best_val_loss = min(best, self.val_loss)
            if reading.kind == "train" and not self._is_going_well(numbers):
                raise self._diverged(reading.step)

    def _is_going_well(self, numbers: Numbers) -> bool:
        # In fp16 infinite gradients are normal: the scaler lowers the loss scale after one.
        judged = ["train/loss"] if self.plan.precision == "fp16" else ["train/loss", GRAD_NORM]
        return all(math.isfinite(numbers[name]) for name in judged if name in numbers)

    def _diverged(self, step: int) -> TrainingDiverged:
        """Save the last good state, and return the error that ends the run.

        A step with gradients that are NaN or infinite is not taken, so the current weights
        are good unless they are not finite themselves.
        """
        self.writer.write_last_good(self._position())
        return TrainingDiverged(
            f"loss or gradients are no numbers any more at step {step:,}; "
            f"{self.writer.way_out()}, "
            "with a lower --grad_clip, or with a lower --learning_rate and --change_schedule"
        )


def _is_due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
