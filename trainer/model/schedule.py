"""The schedule: stage, QDrop, ramps and learning rate as functions of the step number.

In: a step, the number of all steps, and the settings with the spans.
Out: plain values, which can be computed for any step in any order.
Never: keeps state, or touches a model. Steps are optimizer steps, with any gradient
accumulation, and are counted from 0.

Source: Jithin VG, "Orthogonality-Aware Ternary Encoders with Percentile-Scaled Int4
Activations and Mixed-Precision Attention", progressive quantization and QDrop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the model imports this module
    from trainer.model.config import ModelConfig, Steps

Stage = Literal["warmup", "partial_ternary", "full_ternary"]

FULL_TERNARY_LR_FACTOR = 0.7


@dataclass(frozen=True)
class ScheduleState:
    """The values of the schedule at one step."""

    stage: Stage
    qdrop_probability: float
    alpha_ramp: float  # multiplies the learned alpha of every QDyT
    dither: bool
    ternary_dropout: float
    learning_rate_factor: float


def schedule_state(config: ModelConfig, step: int, total_steps: int) -> ScheduleState:
    """Return the state in force while optimizer step number `step` is taken.

    A step at or past total_steps has the final state.

    Raises:
        ValueError: step below 0 or total_steps below 1.
    """
    if step < 0 or total_steps < 1:
        raise ValueError(f"step {step} of {total_steps} steps is outside of any training")
    stage = _stage(config, step, total_steps)
    return ScheduleState(
        stage=stage,
        qdrop_probability=_qdrop_probability(config, step, total_steps),
        alpha_ramp=_alpha_ramp(config, step, total_steps),
        dither=stage == "warmup",
        ternary_dropout=_ternary_dropout(config, step, total_steps),
        learning_rate_factor=FULL_TERNARY_LR_FACTOR if stage == "full_ternary" else 1.0,
    )


def last_trained(steps_done: int) -> int:
    """Return the number of the last step that was taken; 0 before the first.

    A model is evaluated, saved and exported with the schedule's state at this step.
    """
    return max(0, steps_done - 1)


def resolve_steps(span: Steps, total_steps: int) -> int:
    """Return the steps of a span that is given as steps (int) or as a fraction (float)."""
    return round(span * total_steps) if isinstance(span, float) else span


def learning_rate(
    step: int,
    *,
    base: float,
    warmup_steps: int,
    total_steps: int,
    kind: Literal["cosine", "linear"],
    factor: float,
) -> float:
    """Return the learning rate: linear warmup to base, then decay to 0 at total_steps.

    The first step has the rate base / warmup_steps and not 0, because a step at rate 0
    would waste a batch. factor, from ScheduleState, multiplies the result. If warmup_steps
    is not below total_steps, the rate rises to the last step and never decays.

    Raises:
        ValueError: kind is neither cosine nor linear.
    """
    if kind not in ("cosine", "linear"):
        raise ValueError(f"scheduler {kind!r} is not one of cosine, linear")
    if step < warmup_steps:
        return factor * base * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if kind == "linear":
        return factor * base * (1.0 - progress)
    return factor * base * 0.5 * (1.0 + math.cos(math.pi * progress))


def _stage(config: ModelConfig, step: int, total_steps: int) -> Stage:
    if step < round(config.stage1 * total_steps):
        return "warmup"
    if step < round(config.stage2 * total_steps):
        return "partial_ternary"
    return "full_ternary"


def _qdrop_probability(config: ModelConfig, step: int, total_steps: int) -> float:
    span = resolve_steps(config.qdrop_anneal_steps, total_steps)
    return config.qdrop_prob_initial * max(0.0, 1.0 - step / span) if span else 0.0


def _alpha_ramp(config: ModelConfig, step: int, total_steps: int) -> float:
    """Return the ramp of alpha, which rises linearly from alpha_init / alpha_target to 1."""
    span = resolve_steps(config.qdyt_warmup_steps, total_steps)
    start = config.alpha_init / config.alpha_target
    return start + (1.0 - start) * min(1.0, step / span) if span else 1.0


def _ternary_dropout(config: ModelConfig, step: int, total_steps: int) -> float:
    """Return the ternary dropout, which lasts for its span from the first ternary step on.

    If the span began at step 0, it could be over before any weight is ternary.
    """
    first = round(config.stage1 * total_steps)
    span = resolve_steps(config.ternary_dropout_steps, total_steps)
    return config.ternary_dropout if first <= step < first + span else 0.0


def teacher_weight(step: int, total_steps: int, final: float = 0.5) -> float:
    """Return the weight of the teacher's loss: 0 at first, final at the last step.

    It rises as half a cosine wave, so that the teacher has little weight while it is no
    better than the model.
    """
    progress = min(1.0, step / max(1, total_steps - 1))
    return final * 0.5 * (1.0 - math.cos(math.pi * progress))
