"""The window between two logged steps: its mean loss and its speed.

In: the loss and the tokens of each step.
Out: the mean loss, on the device, and the speed.
Never: counts the time of validation or checkpoints as training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Window:
    """Sums since the last logged step.

    loss_sum and steps go into a checkpoint; the clock starts again in a resumed run.
    """

    loss_sum: Tensor
    steps: int = 0
    tokens: int = 0
    timed_steps: int = 0
    started_s: float = field(default_factory=time.perf_counter)

    def add(self, loss: Tensor, tokens: int, is_empty: bool = False) -> None:
        """Count a step; one without a predicted token (is_empty) is left out of the loss."""
        if not is_empty:
            self.loss_sum += loss
            self.steps += 1
        self.timed_steps += 1
        self.tokens += tokens

    def mean_loss(self) -> Tensor:
        """Return the mean loss, (); call it only after a step that is not empty."""
        return self.loss_sum / self.steps

    def speed(self) -> dict[str, float]:
        """Return tokens per second and seconds per step, without the time of pauses."""
        elapsed_s = max(time.perf_counter() - self.started_s, 1e-9)
        return {
            "train/tokens_per_second": self.tokens / elapsed_s,
            "train/step_seconds": elapsed_s / self.timed_steps,
        }

    def pause(self, pausing: Callable[[], None]) -> None:
        """Call pausing, and leave its time out of the speed."""
        began_s = time.perf_counter()
        pausing()
        self.started_s += time.perf_counter() - began_s
