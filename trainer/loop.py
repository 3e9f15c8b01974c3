"""The training loop: batch, forward, backward, step, observe, checkpoint.

In: a model, an optimizer and data, built; a plan; the state that a checkpoint kept.
Out: a trained model, and everything that happened told to the observer.
Never: reads a number from the device while it trains; see scalars.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoint import (
    FORMAT,
    Checkpoint,
    CheckpointDirectory,
    random_states,
    restore_random_states,
)
from trainer.data import Batch
from trainer.errors import TrainingDiverged
from trainer.evaluate import evaluate
from trainer.observe import Observer
from trainer.plan import Plan
from trainer.progress import Progress
from trainer.scalars import ScalarCopies
from trainer.schedule import ScheduleState, learning_rate
from trainer.stop import StopRequest
from trainer.window import Window


@dataclass(frozen=True)
class Reading:
    """What numbers from the device belong to; values are those the host knew already."""

    kind: str
    step: int
    values: dict[str, Any] = field(default_factory=dict)


class Training:
    """A run in progress: what is trained, how far it is, and whom to tell.

    batches_from gives the batches from a position on, validation those of one evaluation.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        model: Any,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        batches_from: Callable[[int], Iterator[Batch]],
        validation: Callable[[], Iterator[Batch]],
        identity: dict[str, Any],
        run_id: str,
        run_name: str,
        observer: Observer,
        progress: Progress,
        checkpoints: CheckpointDirectory,
        stop: StopRequest,
    ) -> None:
        self.plan, self.model, self.optimizer, self.device = plan, model, optimizer, device
        self.batches_from, self.validation = batches_from, validation
        self.identity, self.run_id, self.run_name = identity, run_id, run_name
        self.observer, self.progress = observer, progress
        self.checkpoints, self.stop = checkpoints, stop
        self.scaler = torch.amp.GradScaler(device.type, enabled=plan.fp16)
        self.copies: ScalarCopies[Reading] = ScalarCopies(device)
        self.window = Window(torch.zeros((), device=device))
        self.step = self.position = 0
        self.val_loss: float | None = None
        self.best_val_loss: float | None = None
        self.evaluated_step: int | None = None
        self.saved_step: int | None = None

    def run(self) -> None:
        """Train to the last step, or until a stop is requested; then write a checkpoint.

        Raises:
            TrainingDiverged: the loss is no longer a number.
        """
        plan, model = self.plan, self.model
        stage: str | None = None
        batches = self.batches_from(self.position)
        self.progress.begin(self.step, plan.total_steps)
        self.window.started_s = time.perf_counter()
        model.train()

        while self.step < plan.total_steps and not self.stop.is_requested():
            schedule = model.apply_schedule(self.step, plan.total_steps)
            if schedule.stage != stage:
                self._tell_stage(stage, schedule.stage)
                stage = schedule.stage
            rate = self._set_learning_rate(schedule)

            micro_batches = [next(batches) for _ in range(plan.accumulation)]
            loss = accumulate_gradients(
                model, micro_batches, self.device, self.autocast, self.scaler
            )
            self.scaler.unscale_(self.optimizer)
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), plan.grad_clip or math.inf)
            self.step += 1
            self.position += plan.accumulation * plan.batch_size
            if self._is_due(plan.quant_interval):  # here: it reads the gradients too
                self.copies.send(Reading("quant", self.step), model.diagnostics())
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)

            self.window.add(loss, sum(batch.tokens for batch in micro_batches))
            if self._is_due(plan.log_interval):
                self._log(schedule, rate, grad_norm)
            if self._is_due(plan.eval_interval):
                self.window.pause(self.evaluate)
            if self._is_due(plan.save_interval):
                self.window.pause(self.save)
            self._report(self.copies.arrived())
            self.progress.advance()

        if not self.stop.is_requested() and self.evaluated_step != self.step:
            self.evaluate()
        if self.saved_step != self.step:
            self.save()
        self._report(self.copies.wait())

    def evaluate(self) -> None:
        """Validate the model as it stands after this step."""
        self.model.apply_schedule(self.step, self.plan.total_steps)
        loss = evaluate(
            self.model, self.validation(), self.device, self.autocast, self.stop.is_requested
        )
        if loss is not None:
            self.evaluated_step = self.step
            values = {"val/loss": loss, "val/perplexity": loss.exp()}
            self.copies.send(Reading("val", self.step), values)

    def save(self) -> None:
        """Write a checkpoint. One that cannot be written is said, and does not end the run.

        Raises:
            TrainingDiverged: there is nothing left that is worth keeping.
        """
        self._report(self.copies.wait())
        # Both may wait: to write a checkpoint is to copy everything to the host anyway.
        if not math.isfinite(self.window.loss_sum.item()):
            raise self._diverged(self.step)
        try:
            path = self.checkpoints.save(self.state())
        except OSError as exc:
            self._tell(f"The checkpoint of step {self.step:,} cannot be written: {exc}", "error")
        else:
            self.saved_step = self.step
            self._tell(f"Checkpoint of step {self.step:,}: {path}")

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of forward passes."""
        return torch.autocast(self.device.type, torch.float16) if self.plan.fp16 else nullcontext()

    def state(self) -> Checkpoint:
        """Everything that load() needs."""
        return {
            "format": FORMAT,
            "run_id": self.run_id,
            "run_name": self.run_name,
            "step": self.step,
            "position": self.position,
            "best_val_loss": self.best_val_loss,
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_states(),
            "window": {"loss_sum": self.window.loss_sum, "steps": self.window.steps},
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of a run with the same identity."""
        self.step, self.position = checkpoint["step"], checkpoint["position"]
        self.best_val_loss = checkpoint["best_val_loss"]
        # The stage of the last step done is not in the weights, and without it a run that was
        # stopped between two stages would miss what happens on their border.
        self.model.apply_schedule(max(0, self.step - 1), self.plan.total_steps)
        self.model.load_state_dict(checkpoint["model"])
        # What the arguments and the device decide is this session's, not the checkpoint's.
        for ours, saved in zip(
            self.optimizer.param_groups, checkpoint["optimizer"]["param_groups"], strict=True
        ):
            saved |= {name: ours[name] for name in ("weight_decay", "fused")}
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if checkpoint["scaler"]:  # empty if the run was not in fp16 then
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.window.loss_sum.copy_(checkpoint["window"]["loss_sum"])
        self.window.steps = checkpoint["window"]["steps"]
        restore_random_states(checkpoint["random"])

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

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

    def _log(self, schedule: ScheduleState, rate: float, grad_norm: Tensor) -> None:
        values: dict[str, Any] = {
            "train/learning_rate": rate,
            "train/qdrop_probability": schedule.qdrop_probability,
            "train/training_stage": schedule.stage,
            "train/epoch": self.position / self.plan.rows_per_epoch,
            "train/global_step": self.step,
            **self.window.speed(),
        }
        if self.device.type == "cuda":
            values["torch_gpu_memory_allocated"] = torch.cuda.memory_allocated(self.device) / 1e9
            values["torch_gpu_memory_reserved"] = torch.cuda.memory_reserved(self.device) / 1e9
        numbers = {"train/loss": self.window.mean_loss(), "train/grad_norm": grad_norm}
        self.copies.send(Reading("train", self.step, values), numbers)
        self.window = Window(torch.zeros((), device=self.device))

    def _report(self, arrived: list[tuple[Reading, dict[str, float]]]) -> None:
        for reading, numbers in arrived:
            values = {**numbers, **reading.values}
            self.observer.metrics(reading.kind, reading.step, values)
            self.progress.show(reading.kind, reading.step, values)
            if reading.kind == "val":
                self.val_loss = numbers["val/loss"]
                best = math.inf if self.best_val_loss is None else self.best_val_loss
                self.best_val_loss = min(best, self.val_loss)
            if reading.kind == "train" and not math.isfinite(numbers["train/loss"]):
                raise self._diverged(reading.step)

    def _diverged(self, step: int) -> TrainingDiverged:
        return TrainingDiverged(
            f"the loss is not a number any more at step {step:,}; go on from an earlier "
            "checkpoint with --resume_from, with a lower --learning_rate or --grad_clip"
        )

    def _tell_stage(self, old: str | None, new: str) -> None:
        self._tell(
            f"Stage {new} from step {self.step:,}"
            + (f" on, after {old}." if old else ", where this session begins.")
        )

    def _tell(self, text: str, level: str = "info") -> None:
        self.observer.message(text, level)
        self.progress.say(text)


def accumulate_gradients(
    model: Any,
    micro_batches: list[Batch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    scaler: torch.amp.GradScaler,
) -> Tensor:
    """Add up the gradients of one optimizer step; its mean loss, still on the device.

    Each micro batch counts by its predicted tokens, so the step is the same as that of one
    batch with all their rows.
    """
    predicted = sum(len(batch.predicted) for batch in micro_batches)
    step_loss = torch.zeros((), device=device)
    for cpu_batch in micro_batches:
        batch = cpu_batch.to(device)
        share = len(batch.predicted) / predicted
        # As a tensor of the scaler's making: its get_scale() would wait for the device.
        model.set_loss_scale(scaler.scale(torch.full((), share, device=device)))
        with autocast():
            loss = model(*batch[:4]).loss * share
        scaler.scale(loss).backward()
        step_loss += loss.detach()
    return step_loss
