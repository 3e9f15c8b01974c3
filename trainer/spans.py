"""Spans: how long the parts of a schedule last in a run of any length.

In: a model's configuration, what the user chose, and the steps of the run.
Out: the configuration with the spans of this run; the schedule in words.
Never: changes a span that was chosen, or one that is a fraction of the run already.

One rule for all spans that a size or a default gives in steps, the warmup of the learning
rate, the ramp of alpha, QDrop and ternary dropout: they are meant for a run of 60,000 steps
or more, and a shorter run has them in proportion,

    span * min(1, total_steps / 60,000)

so that it is a long run on a smaller scale, and a step more or less changes next to
nothing. The default run, wikitext-103 for 10 epochs, has some 70,000.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from trainer.model import ModelConfig
from trainer.model.precision import stage_label
from trainer.plan import Plan
from trainer.schedule import FULL_TERNARY_LR_FACTOR, resolve_steps

FULL_LENGTH_STEPS = 60_000
SPANS = ("qdyt_warmup_steps", "qdrop_anneal_steps", "ternary_dropout_steps")


def shorten(span: int, total_steps: int) -> int:
    """Steps of a default span in a run of so many steps."""
    return round(span * min(1.0, total_steps / FULL_LENGTH_STEPS))


def fit_spans(
    config: ModelConfig,
    total_steps: int,
    chosen: Collection[str],
    before: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """The configuration with spans for a run of so many steps.

    chosen names fields that stay as they are. before, the fields of a checkpoint's
    configuration, has the spans of a run that goes on.
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
    """The schedule in sentences, as it is printed before the first step."""
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
            f"Spans that are not chosen are those of {FULL_LENGTH_STEPS:,} steps, in "
            f"proportion to this run's {total:,}."
        )
    return sentences


def _ends(config: ModelConfig, total: int, first_ternary: int) -> dict[str, int]:
    """The step from which each part of the schedule is over, of those that there are."""
    ends = {}
    if "qdyt" in (config.block_norm, config.embed_norm, config.final_norm):
        ends["ramp of alpha"] = resolve_steps(config.qdyt_warmup_steps, total)
    if stage_label(config, "full_ternary") != "float" and config.qdrop_prob_initial:
        ends["QDrop"] = resolve_steps(config.qdrop_anneal_steps, total)
    if config.weight_mode != "float" and config.ternary_dropout:
        span = resolve_steps(config.ternary_dropout_steps, total)
        ends["ternary dropout"] = first_ternary + span
    return ends
