"""Window: what adds up between two logged steps.

In: the loss and the tokens of each step.
Out: the mean loss, still on the device, and the speed.
Never: counts the time of validation or checkpoints as training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Window:
    """Since the last logged step.

    The sum and its count go into a checkpoint; the clock starts anew in every process.
    """

    loss_sum: Tensor
    steps: int = 0
    tokens: int = 0
    timed_steps: int = 0
    started_s: float = field(default_factory=time.perf_counter)

    def add(self, loss: Tensor, tokens: int, is_empty: bool = False) -> None:
        """Count a step; the mean loss is that of those in which something was predicted."""
        if not is_empty:
            self.loss_sum += loss
            self.steps += 1
        self.timed_steps += 1
        self.tokens += tokens

    def mean_loss(self) -> Tensor:
        """Shapes: -> (). Only where there was a step that is not empty."""
        return self.loss_sum / self.steps

    def speed(self) -> dict[str, float]:
        """Tokens a second and seconds a step, without the time of pauses."""
        elapsed_s = max(time.perf_counter() - self.started_s, 1e-9)
        return {
            "train/tokens_per_second": self.tokens / elapsed_s,
            "train/step_seconds": elapsed_s / self.timed_steps,
        }

    def pause(self, pausing: Callable[[], None]) -> None:
        """Do something that is not training."""
        began_s = time.perf_counter()
        pausing()
        self.started_s += time.perf_counter() - began_s
