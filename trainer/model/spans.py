"""Spans: the lengths in steps of the parts of a schedule, for a run of any length.

In: a model's configuration, the fields that the user chose, and the steps of the run.
Out: the configuration with the spans of this run; the schedule in words.
Never: changes a span that the user chose, or one that is given as a fraction of the run.

One rule holds for the spans that a model size or a default gives in steps: warmup of the
learning rate, ramp of alpha, QDrop and ternary dropout. They are made for runs of 60,000
steps or more, and a shorter run has them in proportion:

    span * min(1, total_steps / 60,000)

A short run thus is a long run on a smaller scale, and one step more or less changes almost
nothing. The default run, wikitext-103 for 10 epochs, has about 70,000 steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from trainer.model import ModelConfig
from trainer.model.precision import stage_label
from trainer.model.schedule import FULL_TERNARY_LR_FACTOR, resolve_steps
from trainer.plan import Plan

FULL_LENGTH_STEPS = 60_000
SPANS = ("qdyt_warmup_steps", "qdrop_anneal_steps", "ternary_dropout_steps")


def shorten(span: int, total_steps: int) -> int:
    """Return the length of a default span in a run of total_steps."""
    return round(span * min(1.0, total_steps / FULL_LENGTH_STEPS))


def fit_spans(
    config: ModelConfig,
    total_steps: int,
    chosen: Collection[str],
    before: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """Return the configuration with the spans of a run of total_steps.

    chosen names the fields that stay as they are. before holds the fields of a checkpoint's
    configuration: a run that resumes from it keeps the spans of that configuration.
    """
    fitted = {}
    for name in SPANS:
        span = getattr(config, name)
        if name not in chosen:
            if before is not None:
                fitted[name] = before[name]
            elif isinstance(span, int):
                fitted[name] = shorten(span, total_steps)
    return dataclasses.replace(config, **fitted)


def describe_schedule(config: ModelConfig, plan: Plan) -> list[str]:
    """Describe the schedule in sentences, which are printed before the first step."""
    total = plan.total_steps
    first, second = round(config.stage1 * total), round(config.stage2 * total)
    parts = [f"learning rate rises to step {plan.warmup_steps:,}, {plan.scheduler} from there"]
    parts.append(f"times {FULL_TERNARY_LR_FACTOR} from step {second:,}")
    if config.weight_mode != "float":
        parts.append(
            f"int8 weights before step {first:,}, ternary in the top layers from there and in "
            f"all from step {second:,}"
        )
    ends = _ends(config, total, first)
    parts += [f"{what} to step {end:,}" for what, end in ends.items()]
    sentences = [f"Schedule: {'; '.join(parts)}."]
    unfinished = [what for what, end in ends.items() if end > total]
    if unfinished:
        sentences.append(
            f"Not over at this run's last step {total:,}: {', '.join(unfinished)}; "
            "their spans were given in steps."
        )
    if total < FULL_LENGTH_STEPS:
        sentences.append(
            f"Default spans are those of a run of {FULL_LENGTH_STEPS:,} steps, in "
            f"proportion to this run's {total:,}."
        )
    return sentences


def _ends(config: ModelConfig, total: int, first_ternary: int) -> dict[str, int]:
    """Return the step at which each part of the schedule ends; parts not in use are left out."""
    ends = {}
    if "qdyt" in (config.block_norm, config.embed_norm, config.final_norm):
        ends["ramp of alpha"] = resolve_steps(config.qdyt_warmup_steps, total)
    if stage_label(config, "full_ternary") != "float" and config.qdrop_prob_initial:
        ends["QDrop"] = resolve_steps(config.qdrop_anneal_steps, total)
    if config.weight_mode != "float" and config.ternary_dropout:
        span = resolve_steps(config.ternary_dropout_steps, total)
        ends["ternary dropout"] = first_ternary + span
    return ends
