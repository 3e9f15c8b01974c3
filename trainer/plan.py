"""The plan of a run: the numbers that are fixed before its first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Plan:
    """Numbers that the training loop follows.

    Steps are optimizer steps; an interval of 0 means never. A step reads batch_size rows in
    each micro batch of each process.
    """

    total_steps: int
    warmup_steps: int
    batch_size: int
    accumulation: int
    rows_per_epoch: int
    learning_rate: float
    scheduler: Literal["linear", "cosine"]
    grad_clip: float
    precision: Literal["fp32", "fp16", "bf16"]
    log_interval: int
    eval_interval: int
    quant_interval: int
    save_interval: int
    quant_detail: bool = False
    profile_blocks: bool = False
    world_size: int = 1

    @property
    def rows_per_step(self) -> int:
        """The rows that an optimizer step reads, in all processes together."""
        return self.batch_size * self.accumulation * self.world_size
