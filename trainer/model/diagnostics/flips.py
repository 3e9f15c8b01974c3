"""Flips and oscillation of ternary codes.

In: the ternary layers of an encoder in a few consecutive steps before each diagnostic.
Out: for each layer a FlipReading of device tensors.
Never: costs anything in other steps, or compares codes of steps that are not neighbours:
over a gap, a weight that flips in every step looks like one that never does.

For a weight with code q at step t, with m = 0.1 for each step that is watched:

    o_t = 1 if q_t != q_{t-1}, opposite in sign to the change before it in the window
    f_t = m * o_t + (1 - m) * f_{t-1}

f is the frequency of its oscillation: 1 for a weight that flips in every step, 0 for one
that moves through its codes in one direction. The first change in a window has no change
before it, so it only sets the direction.

Source: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training",
arXiv:2203.11086, section 2.3. Departures: steps between two windows are not watched, f is
corrected for having started at 0, and of a large layer whole rows are sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.model.linear import QuantizedLinear
from trainer.model.ternary import absmean_ternary, ternary_codes

WINDOW_STEPS = 8
"""Consecutive steps whose codes are compared, the last of them that of the diagnostic."""
MOMENTUM = 0.1
OSCILLATING_FREQUENCY = 0.1
"""A weight is oscillating if it goes back more often than once in ten steps."""

# About this many weights of a layer are compared, as whole rows that are evenly spread.
_SAMPLE = 65_536


def is_watched(step: int, interval: int) -> bool:
    """True for a step of the window before a diagnostic; interval 0 means that there is none."""
    return interval > 0 and -step % interval < WINDOW_STEPS


class FlipReading(NamedTuple):
    """Flips of one layer, () each; oscillation and oscillating are None in a short window.

    rate is the share of codes that change in a step, oscillation the mean of f, and
    oscillating the share of weights with f above OSCILLATING_FREQUENCY.
    """

    rate: Tensor
    oscillation: Tensor | None
    oscillating: Tensor | None


class FlipMeter:
    """The memory of codes from step to step, and of frequencies from window to window."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._frequencies: dict[str, _Frequency] = {}

    @torch.no_grad()
    def watch(self, linears: Mapping[str, QuantizedLinear], step: int) -> None:
        """Record the codes of the ternary layers in a step."""
        for name, linear in linears.items():
            if linear.is_ternary:
                self._note(name, sampled_codes(linear), step)

    def take(self, name: str) -> FlipReading | None:
        """Return the reading since the last call; None without two watched steps in a row."""
        window = self._windows.get(name)
        if window is None or not window.transitions:
            return None
        rate = window.changed / window.transitions
        frequency = self._frequencies.setdefault(name, _Frequency())
        frequency.add(window.alternations, window.transitions - window.is_first_open)
        window.restart_counts()
        if frequency.value is None:
            return FlipReading(rate, None, None)
        f = frequency.value
        return FlipReading(rate, f.mean(), (f > OSCILLATING_FREQUENCY).float().mean())

    def _note(self, name: str, codes: Tensor, step: int) -> None:
        window = self._windows.get(name)
        if window is not None and window.step == step:
            return
        if window is None or window.step + 1 != step or window.codes.shape != codes.shape:
            self._windows[name] = _Window(codes, step)
        else:
            window.move(codes)


class _Window:
    """Consecutive steps of one layer; codes, directions and counts are (rows, in) int8."""

    def __init__(self, codes: Tensor, step: int) -> None:
        self.codes, self.step = codes, step
        self.direction = torch.zeros_like(codes)
        # The first transition after a gap can't alternate: there is no change before it.
        self.is_first_open = True
        self._clear()

    def move(self, codes: Tensor) -> None:
        """Go on to the codes of the next step."""
        change = torch.sign(codes - self.codes)
        self.changed += change.abs().float().mean()
        self.alternations += (change * self.direction).lt(0)
        # Keep the latest change of each code. Products, since torch.where is slow on a CPU.
        self.direction.mul_(change.eq(0)).add_(change)
        self.codes = codes
        self.step += 1
        self.transitions += 1

    def restart_counts(self) -> None:
        """Set the counts to 0; the directions stay those of the steps before."""
        self.is_first_open = False
        self._clear()

    def _clear(self) -> None:
        self.changed = torch.zeros((), device=self.codes.device)
        self.alternations = torch.zeros_like(self.codes)
        self.transitions = 0


class _Frequency:
    """The oscillation frequency f of each weight of a layer.

    A window of n steps moves f once, towards its mean, with the weight of n steps.
    """

    def __init__(self) -> None:
        self._average: Tensor | None = None
        self._steps = 0

    @property
    def value(self) -> Tensor | None:
        """The frequency f, (rows, in), corrected for its start at 0; None before any step."""
        if self._average is None:
            return None
        return self._average / (1.0 - (1.0 - MOMENTUM) ** self._steps)

    def add(self, alternations: Tensor, steps: int) -> None:
        """Add a window: the number of watched steps, and each weight's alternations in them."""
        if not steps:
            return
        found = alternations.float() / steps
        kept = (1.0 - MOMENTUM) ** steps
        before = self._average
        if before is None or before.shape != found.shape:
            before, self._steps = torch.zeros_like(found), 0
        self._average = torch.lerp(found, before, kept)
        self._steps += steps


def sampled_codes(linear: QuantizedLinear, about: int = _SAMPLE) -> Tensor:
    """Return the ternary codes of about so many weights as int8, (sampled rows, in).

    They are whole rows that are evenly spread.
    """
    weight = linear.weight
    every = max(1, weight.numel() // about)
    columns = linear.columns()
    if columns is None:
        # The scale is that of the whole matrix, so the whole matrix has to be read.
        return absmean_ternary(weight)[0][::every].to(torch.int8)
    t, delta = columns.threshold[::every], columns.dead_zone[::every]
    return ternary_codes(weight[::every], t, delta).to(torch.int8)
