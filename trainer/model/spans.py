"""Spans: the lengths in steps of the parts of a schedule, for a run of any length.

In: a model's configuration, the fields that the user chose, and the steps of the run.
Out: the configuration with the spans of this run.
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

from trainer.model.config import ModelConfig

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
