"""Reporting of metrics and messages, to the record and to the person at the terminal.

In: numbers that have arrived from the device, and facts of the run.
Out: events through the observer, lines through the progress.
Never: repeats a report in several processes of one run: only the first makes it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.model.diagnostics.alarms import find_alarms
from trainer.processes import is_first
from trainer.reporting.observer import Observer
from trainer.reporting.progress import Progress

ALARMS_TOLD = 5
"""Alarms told at once, at most: with diagnostics by layer, a wrong threshold raises hundreds."""


@dataclass(frozen=True)
class Reading:
    """The label of numbers from the device; values are further ones that the host had."""

    kind: str
    step: int
    values: dict[str, Any] = field(default_factory=dict)


class Reporter:
    """The reporter of one process; only the first reports for the run. Not thread-safe."""

    def __init__(self, observer: Observer, progress: Progress, rank: int = 0) -> None:
        self._observer, self._progress = observer, progress
        self._rank, self._is_first = rank, is_first(rank)
        self._alarmed: set[str] = set()

    def begin(self, step: int, total_steps: int) -> None:
        """Report that training starts after `step` steps that were done before."""
        self._progress.begin(step, total_steps)

    def advance(self, profiles: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Report that a step is done; profiles are times of blocks in earlier steps."""
        self._progress.advance()
        self.advance_to_end(profiles)

    def advance_to_end(self, profiles: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Report times of blocks, as (step, seconds by metric name)."""
        for step, seconds in profiles:
            if self._is_first and seconds:
                self._observer.metrics("custom", step, seconds)

    def report(self, reading: Reading, numbers: Mapping[str, Any]) -> None:
        """Report numbers that have arrived from the device; lists belong to histograms."""
        if not self._is_first:
            return
        scalars = {n: v for n, v in numbers.items() if not isinstance(v, list)}
        values = {**scalars, **reading.values}
        self._observer.metrics(reading.kind, reading.step, values)
        self._progress.show(reading.kind, reading.step, values)
        if reading.kind == "quant":
            self._tell_alarms(reading.step, scalars)
        for name in numbers:
            title, _, part = name.rpartition("/")
            if part == "edges":  # its counts are beside it
                counts = numbers[f"{title}/counts"]
                self._observer.histogram(reading.kind, reading.step, title, numbers[name], counts)

    def spans(self, spans: Iterable[tuple[str, int, float]]) -> None:
        """Report phases outside of steps that have ended, as (metric name, step, seconds)."""
        for name, step, seconds in spans:
            if self._is_first:
                self._observer.metrics("custom", step, {name: seconds})

    def work(self, step: int, values: dict[str, Any], work_seconds: Sequence[float]) -> None:
        """Report step and work time of this rank; the first adds them to `values` instead.

        work_seconds has a time for each rank. A step takes equally long in all ranks, since
        they wait for each other; the time before that wait shows which of them is slow.
        """
        if not work_seconds:
            return
        own = {
            f"rank/{self._rank}/step_seconds": values["train/step_seconds"],
            f"rank/{self._rank}/work_seconds": work_seconds[self._rank],
        }
        if "train/input_seconds" in values:
            own[f"rank/{self._rank}/input_seconds"] = values["train/input_seconds"]
        if not self._is_first:
            self._observer.metrics("train", step, own)
            return
        values |= own
        median = statistics.median(work_seconds)
        if median > 0:
            values["train/straggler_ratio"] = max(work_seconds) / median

    def stage(self, step: int, old: str | None, new: str) -> None:
        """Report that another stage is in force from a step on; old is None at the start."""
        if new == "float":
            self.tell("No stages: neither weights nor activations are quantized.")
            return
        self.tell(
            f"Stage {new} from step {step:,}"
            + (f" on, after {old}." if old else ", where this session begins.")
        )

    def _tell_alarms(self, step: int, values: Mapping[str, float]) -> None:
        """Report metrics that left their range since the last reading, and those back in it."""
        alarms = find_alarms(values)
        new = [sentence for name, sentence in alarms.items() if name not in self._alarmed]
        over = sorted(self._alarmed - alarms.keys())
        self._alarmed = set(alarms)
        for sentence in new[:ALARMS_TOLD]:
            self.tell(f"Step {step:,}: {sentence}.", "warning")
        if len(new) > ALARMS_TOLD:
            self.tell(f"Step {step:,}: and {len(new) - ALARMS_TOLD} more like this.", "warning")
        if over:
            others = f" and {len(over) - 1} others are" if len(over) > 1 else " is"
            self.tell(f"Step {step:,}: {over[0]}{others} in range again.")

    def tell(self, text: str, level: str = "info") -> None:
        """Write a line to the record and to the terminal."""
        if self._is_first:
            self._observer.message(text, level)
            self._progress.say(text)
