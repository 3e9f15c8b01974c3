"""The progress of a run as a person at the terminal sees it.

In: sentences, and the numbers of logged steps.
Out: standard error: a progress bar on a terminal, else one line for each logged step.
Never: shows a number that training would have to wait for.
"""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from shared.closing import Closing

LARGEST_LOSS = 700.0
"""The largest loss whose perplexity is computed: exp(710) does not fit into a float."""

BAR_FORMAT = "{n_fmt}/{total_fmt} {bar} {remaining} left{postfix}"
"""Format of the bar, which with the numbers behind it fits into 80 columns."""


def perplexity(loss: float) -> float:
    """Return exp(loss), with the loss limited to LARGEST_LOSS."""
    return math.exp(min(loss, LARGEST_LOSS))


class Progress(Closing):
    """A context that prints the progress of a run. Not thread-safe.

    Of several processes only the first prints; the others have is_silent.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_silent: bool = False,
    ) -> None:
        self._stream = io.StringIO() if is_silent else stream or sys.stderr
        self._is_silent = is_silent
        self._clock = clock
        self._bar: Any = None
        self._total = self._first = 0
        self._started_s = 0.0

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._is_silent:
            return
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            tqdm.write(text, file=self._stream)

    def begin(self, step: int, total_steps: int) -> None:
        """Show the bar on a terminal; `step` steps were done before this session."""
        self._first, self._total, self._started_s = step, total_steps, self._clock()
        if self._stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=step,
                bar_format=BAR_FORMAT,
                file=self._stream,
                dynamic_ncols=True,
                leave=False,
            )

    def advance(self) -> None:
        """Move the bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def show(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Show the numbers of a logged step, if kind is train or val."""
        if self._is_silent:
            return
        if kind == "val":
            loss, found = values["val/loss"], values["val/perplexity"]
            text = f"step {step:,}: validation loss {loss:.4f}, perplexity {found:,.1f}"
            share = values.get("val/accuracy")
            self.say(text if share is None else f"{text}, accuracy {100 * share:.1f} %")
        elif kind == "train" and self._bar is not None:
            self._bar.set_postfix_str(_describe(values, perplexity_as="ppl", tokens_as="tok"))
        elif kind == "train":
            self.say(
                f"step {step:,}/{self._total:,}: {_describe(values)}, "
                f"{_clock_time(self._left_s(step))} left"
            )

    def close(self) -> None:
        """Take the bar off the screen; may be called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _left_s(self, step: int) -> float:
        done = max(1, step - self._first)
        return (self._clock() - self._started_s) / done * (self._total - step)


def _describe(
    values: Mapping[str, Any], perplexity_as: str = "perplexity", tokens_as: str = "tokens"
) -> str:
    if "train/loss" in values:
        loss = values["train/loss"]
        found = f"loss {loss:.4f}, {perplexity_as} {perplexity(loss):,.1f}"
    else:
        found = "nothing to predict"
    return (
        f"{found}, {values['train/training_stage']}, "
        f"{values['train/tokens_per_second']:,.0f} {tokens_as}/s"
    )


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
