"""Training rules: judge the health of a trainer by the values of one session.

In: the metrics of one session, in their order, with the time at which they came.
Out: verdicts.
Never: compares with another session: each has a baseline of its own.

    step_time          median of the last 5 steps against that of steps 4 to 23
    loss_not_finite    a loss that is NaN or infinite; over after 10 that are not
    loss_diverging     median of the last 10 losses against the lowest such median
    val_loss_rising    each of the last `count` validations worse than the one before
    ternary_collapse   nearly all ternary weights 0, or nearly none +1 or -1
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from shared.events import MetricsLogged, Scalar
from shared.text import clean
from telemetry.alerts.rules import Rule, Rules
from telemetry.alerts.verdicts import SUBJECTS_MAX, Key, Verdict
from telemetry.watch.latest import is_own

SKIPPED: Final = 3
"""First steps, which compile and warm up."""
BASELINE: Final = 20
RECENT: Final = 5
LOSSES: Final = 10
FINITE_AGAIN: Final = 10
OVER_RATIO: Final = 0.75
"""A ratio below this share of its bound is over: between the two it stays as it is."""
LOSS_NAMES: Final = ("train/loss", "val/loss", "loss")
VALUE_GAPS: Final = 5.0
"""A trainer is silent after this many times its longest time between two rows."""


@dataclass
class TrainingWatch:
    """One session of a run's main source. Not thread-safe."""

    session: str
    at_ns: int = 0
    longest_gap_ns: int = 0
    _steps: list[float] = field(default_factory=list)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _last_step: tuple[int, int] | None = None
    _has_step_seconds: bool = False
    _finite: dict[str, int] = field(default_factory=dict)
    """How many finite values came since the last that was not, by name."""
    _hits: set[str] = field(default_factory=set)
    """Losses that were not finite since the last verdict."""
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=LOSSES))
    _best: float = math.inf
    _val: list[float] = field(default_factory=list)
    _codes: dict[str, dict[str, float]] = field(default_factory=dict)
    """Shares of ternary codes, by layer."""

    def see(self, metrics: Sequence[MetricsLogged], now_ns: int) -> None:
        """Take in the rows of one frame."""
        rows = [event for event in metrics if not is_own(event.values)]
        if not rows:
            return
        if self.at_ns:
            self.longest_gap_ns = max(self.longest_gap_ns, now_ns - self.at_ns)
        self.at_ns = now_ns
        # A row that came alone came when it was logged: its time is a step's time.
        is_alone = sum(event.kind == "train" for event in metrics) == 1
        newest: dict[str, Scalar] = {}
        for event in rows:
            self._see_step(event, now_ns, is_alone=is_alone)
            values = event.values
            for name in LOSS_NAMES:
                if name in values and (loss := _number(values[name])) is not None:
                    self._see_loss(name, loss)
            newest.update(values)
        for name, value in newest.items():
            if name.startswith("quant/") and name.endswith("_ratio"):
                self._see_codes(name, value)

    def verdicts(self, run_id: str, source: str, rules: Rules) -> Iterator[Verdict]:
        """Yield a verdict of each rule that has evidence."""
        checks = (
            ("step_time", self._step_time),
            ("loss_diverging", self._diverging),
            ("val_loss_rising", self._rising),
        )
        for name, check in checks:
            if (rule := rules.get(name)) and (found := check(rule)) is not None:
                is_bad, text, value = found
                key = Key(run_id, name, source)
                yield Verdict(key, is_bad, text, value, rule.severity)
        if rule := rules.get("loss_not_finite"):
            yield from self._not_finite(run_id, rule)
        if rule := rules.get("ternary_collapse"):
            yield from self._collapses(run_id, rule)

    # --- steps

    def _see_step(self, event: MetricsLogged, now_ns: int, *, is_alone: bool) -> None:
        seconds = _number(event.values.get("train/step_seconds"))
        if seconds is not None and math.isfinite(seconds) and seconds > 0:
            self._has_step_seconds = True
            self._note_step(seconds)
        if event.kind != "train" or event.step is None or self._has_step_seconds:
            return
        before, self._last_step = self._last_step, (event.step, now_ns) if is_alone else None
        # Rows that come together were held back on their way: their times say nothing.
        if before is not None and is_alone and event.step > before[0]:
            self._note_step((now_ns - before[1]) / 1e9 / (event.step - before[0]))

    def _note_step(self, seconds: float) -> None:
        if len(self._steps) < SKIPPED + BASELINE:
            self._steps.append(seconds)
        else:
            self._recent.append(seconds)

    def _step_time(self, rule: Rule) -> tuple[bool, str, float] | None:
        if len(self._recent) < RECENT:
            return None
        usual = statistics.median(self._steps[SKIPPED:])
        now = statistics.median(self._recent)
        bound = rule.number("ratio")
        ratio = now / usual if usual else 0.0
        if OVER_RATIO * bound < ratio < bound:
            return None
        text = f"a step takes {now:.3g} s, at the start of this session it took {usual:.3g} s"
        return ratio >= bound, text, now

    # --- losses

    def _see_loss(self, name: str, loss: float) -> None:
        if not math.isfinite(loss):
            self._finite[name] = 0
            self._hits.add(name)
            return
        if name in self._finite:
            self._finite[name] += 1
        if name == "val/loss":
            self._val = [*self._val, loss][-50:]
        else:
            self._losses.append(loss)

    def _not_finite(self, run_id: str, rule: Rule) -> Iterator[Verdict]:
        for name, since in self._finite.items():
            # However many finite values came in the same poll.
            is_bad = since < FINITE_AGAIN or name in self._hits
            text = f"{name} is not a number, or infinite"
            yield Verdict(Key(run_id, rule.name, name), is_bad, text, None, rule.severity)
        self._hits.clear()

    def _diverging(self, rule: Rule) -> tuple[bool, str, float] | None:
        if len(self._losses) < LOSSES:
            return None
        now = statistics.median(self._losses)
        self._best = min(self._best, now)
        # For a loss that may be 0 or below a ratio means nothing: its size is the measure.
        excess, bound = now - self._best, (rule.number("ratio") - 1) * abs(self._best)
        if not bound or OVER_RATIO * bound < excess < bound:
            return None
        text = f"the loss is {now:.4g}, it was {self._best:.4g} in this session"
        return excess >= bound, text, now

    def _rising(self, rule: Rule) -> tuple[bool, str, float] | None:
        count = int(rule.number("count"))
        if len(self._val) <= count:
            return None
        last = self._val[-count - 1 :]
        is_bad = all(after > before for before, after in pairwise(last))
        text = f"the validation loss rose {count} times in a row, to {last[-1]:.4g}"
        return is_bad, text, last[-1]

    # --- ternary weights

    def _see_codes(self, name: str, value: object) -> None:
        layer, _, what = name.removeprefix("quant/").rpartition("/")
        number = _number(value)
        if what not in ("zero_ratio", "plus_ratio", "minus_ratio") or number is None:
            return
        if layer in self._codes or len(self._codes) < SUBJECTS_MAX:
            self._codes.setdefault(clean(layer, 100), {})[what] = number

    def _collapses(self, run_id: str, rule: Rule) -> Iterator[Verdict]:
        for layer, shares in self._codes.items():
            zero = shares.get("zero_ratio", 0.0)
            sign = min(shares.get("plus_ratio", 1.0), shares.get("minus_ratio", 1.0))
            is_bad = zero >= rule.number("zero_ratio") or sign <= rule.number("sign_ratio")
            said = ", ".join(f"{name} {share:.3f}" for name, share in sorted(shares.items()))
            text = f"ternary codes of {layer or 'the model'}: {said}"
            key = Key(run_id, rule.name, layer or "model")
            yield Verdict(key, is_bad, text, zero, rule.severity)


def _number(value: object) -> float | None:
    """Return a value as a number; None for a text, a bool, or no value."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
