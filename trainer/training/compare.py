"""Comparison of a resumed run's settings with those in its checkpoint.

In: a checkpoint, and the schedule and arguments of the run that resumes from it.
Out: sentences about the differences; a refusal if they change the schedule.
Never: compares model, data or seed; check_identity does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trainer.errors import BadInput
from trainer.model import ModelConfig
from trainer.model.schedule import last_trained, schedule_state
from trainer.model.spans import SPANS
from trainer.plan import Plan
from trainer.training.checkpoint import Checkpoint

# Arguments that change how a step is computed, but neither the schedule nor the identity.
TRAINING_ARGUMENTS = (
    "batch_size", "gradient_accumulation_steps", "weight_decay", "grad_clip", "mlm_probability",
    "fp16", "bf16", "teacher", "teacher_temperature", "teacher_weight",
)  # fmt: skip


def schedule_of(plan: Plan, config: ModelConfig) -> dict[str, Any]:
    """Return the values that learning rate and stages follow from, as a checkpoint has them."""
    return {
        "total_steps": plan.total_steps,
        "learning_rate": plan.learning_rate,
        "scheduler": plan.scheduler,
        "warmup_steps": plan.warmup_steps,
        **{name: getattr(config, name) for name in SPANS},
    }


def compare_schedule(
    checkpoint: Checkpoint, schedule: Mapping[str, Any], config: ModelConfig, is_allowed: bool
) -> list[str]:
    """Return a sentence about differences between the schedule and the checkpoint's.

    The list is empty if there are none.

    Raises:
        BadInput: there are differences, and is_allowed is false.
    """
    saved = _saved_schedule(checkpoint)
    changes = [
        f"{name} {saved[name]} is {value} now"
        for name, value in schedule.items()
        if name in saved and saved[name] != value
    ]
    if not changes:
        return []
    text = ", ".join(changes) + _stage_change(checkpoint, schedule, config)
    if not is_allowed:
        raise BadInput(
            f"the checkpoint's run has another schedule: {text}; give the arguments of the "
            "first run, or --change_schedule to go on with these"
        )
    return [f"The schedule differs from the checkpoint's: {text}."]


def compare_arguments(
    checkpoint: Checkpoint, arguments: Mapping[str, Any], rows_per_step: int, world_size: int
) -> list[str]:
    """Return a sentence about training arguments that differ from the checkpoint's.

    The list is empty if there are none.
    """
    saved = checkpoint["arguments"]
    changes = [
        f"--{name} {_shown(saved.get(name))} is {_shown(arguments.get(name))} now"
        for name in TRAINING_ARGUMENTS
        if saved.get(name) != arguments.get(name)
    ]
    before = checkpoint.get("rows_per_step", rows_per_step)
    if before != rows_per_step:
        changes.append(f"a step had {before} rows and has {rows_per_step}")
    changes += _place_changes(checkpoint["random"], world_size)
    return [f"Changed since the checkpoint: {', '.join(changes)}."] if changes else []


def _place_changes(random: Sequence[Mapping[str, Any]], world_size: int) -> list[str]:
    """Describe changes of processes or GPUs, after which random noise can't continue exactly.

    random has the checkpoint's states of generators by rank.
    """
    changes = []
    if len(random) != world_size:
        changes.append(f"{len(random)} processes are {world_size} now")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    had = len(random[0]["cuda"])
    if had != gpus:
        changes.append(f"{had} visible GPUs are {gpus} now, so their noise begins anew")
    return changes


def _saved_schedule(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the checkpoint's schedule; without warmup_steps if it is of an older version."""
    names = ("learning_rate", "scheduler")
    found = {name: checkpoint["arguments"][name] for name in names}
    found |= {name: checkpoint["model_config"][name] for name in SPANS}
    found["total_steps"] = checkpoint["total_steps"]
    found.update(checkpoint.get("schedule", {}))
    return found


def _stage_change(checkpoint: Checkpoint, schedule: Mapping[str, Any], config: ModelConfig) -> str:
    step = last_trained(checkpoint["step"])
    was, now = (
        schedule_state(config, step, total).stage
        for total in (checkpoint["total_steps"], schedule["total_steps"])
    )
    return "" if was == now else f"; its last step was in stage {was}, and would be in {now}"


def _shown(value: Any) -> str:
    return "not given" if value in (None, False) else "given" if value is True else str(value)
