"""Plan: the numbers that a run follows, decided before its first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Plan:
    """Steps are optimizer steps; an interval of 0 means never."""

    total_steps: int
    warmup_steps: int
    batch_size: int
    accumulation: int
    rows_per_epoch: int
    learning_rate: float
    scheduler: Literal["linear", "cosine"]
    grad_clip: float
    fp16: bool
    log_interval: int
    eval_interval: int
    quant_interval: int
    save_interval: int
