"""Flips and oscillation of ternary codes, against loops over single weights."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.model.test_encoder import make_model
from trainer.model.diagnostics.diagnostics import Diagnostics
from trainer.model.diagnostics.flips import (
    MOMENTUM,
    WINDOW_STEPS,
    FlipMeter,
    is_watched,
    sampled_codes,
)
from trainer.model.linear import Columns

INTERVAL = 500


class CodedLayer:
    """The least of a ternary layer: weights with a threshold of 0 and a dead zone of 1/2."""

    is_ternary = True

    def __init__(self, codes: torch.Tensor) -> None:
        self.weight = codes.float()

    def columns(self) -> Columns:
        column = torch.zeros(len(self.weight), 1)
        return Columns(column, column, column + 0.5)


def watch(codes_at, steps, meter=None):
    """The reading at the last of some steps."""
    meter = meter or FlipMeter()
    for step in steps:
        meter.watch({"layer": CodedLayer(codes_at(step))}, step)
    return meter.take("layer")


def window_before(step: int) -> range:
    return range(step - WINDOW_STEPS + 1, step + 1)


def flipping(step: int) -> torch.Tensor:
    return torch.full((2, 3), 1 if step % 2 else 0)


def drifting(step: int) -> torch.Tensor:
    """Each weight goes once from -1 over 0 to +1, some steps after its neighbour."""
    return torch.tensor([[min(1, max(-1, step - 495 - 2 * i - 1)) for i in range(3)]] * 2)


def test_a_weight_that_flips_in_every_step_is_seen_to_oscillate():
    """Also with an even interval, at whose ends its code is the same each time."""
    meter = FlipMeter()

    readings = [watch(flipping, window_before(step), meter) for step in (INTERVAL, 2 * INTERVAL)]

    for reading in readings:
        assert reading.rate == 1.0
        assert reading.oscillation.item() == pytest.approx(1.0)
        assert reading.oscillating == 1.0


def test_a_drift_in_one_direction_is_no_oscillation():
    """Codes that change, and never back."""
    reading = watch(drifting, window_before(500))

    assert reading.rate > 0.2
    assert reading.oscillation == 0.0
    assert reading.oscillating == 0.0


def test_still_codes_have_no_flips():
    """A rate of 0 is known here, and not only assumed."""
    reading = watch(lambda step: torch.tensor([[1, 0, -1]]), window_before(500))

    assert [value.item() for value in reading] == [0.0, 0.0, 0.0]


def test_a_change_over_a_gap_is_not_one_of_a_step():
    """What happened between two windows nobody knows."""
    meter = FlipMeter()
    watch(lambda step: torch.tensor([[1]]), window_before(500), meter)

    reading = watch(lambda step: torch.tensor([[-1]]), window_before(1000), meter)

    assert reading.rate == 0.0
    assert watch(lambda step: torch.tensor([[1]]), [1500], meter) is None


@pytest.mark.parametrize("interval", [1, 2, 3, 7, 8, 20])
def test_frequencies_are_those_of_the_formula_weight_by_weight(interval):
    """o and f of the module's docstring in plain loops, over random codes and several windows."""
    generator = torch.Generator().manual_seed(interval)
    codes = torch.randint(-1, 2, (81, 2, 5), generator=generator)
    meter, last = FlipMeter(), None

    for step in range(81):
        if is_watched(step, interval):
            meter.watch({"layer": CodedLayer(codes[step])}, step)
        if step and step % interval == 0:
            last = meter.take("layer") or last

    expected = []
    for row in range(2):
        for column in range(5):
            f, watched, direction, pending, count = 0.0, 0, None, 0, 0
            previous = None
            for step in range(81):
                if is_watched(step, interval):
                    now = codes[step, row, column].item()
                    if previous is not None and previous[0] == step - 1:
                        change = (now > previous[1]) - (now < previous[1])
                        if direction is not None:
                            count += 1
                            pending += change * direction < 0
                        direction = change or direction or 0
                    else:
                        direction = None
                    previous = (step, now)
                if step and step % interval == 0 and count:
                    kept = (1 - MOMENTUM) ** count
                    f = kept * f + (1 - kept) * pending / count
                    watched, pending, count = watched + count, 0, 0
            expected.append(f / (1 - (1 - MOMENTUM) ** watched))
    assert last.oscillation.item() == pytest.approx(sum(expected) / 10, rel=1e-4)
    assert last.oscillating.item() == pytest.approx(sum(f > 0.1 for f in expected) / 10)


def test_the_watched_steps_are_the_last_of_each_interval():
    """Eight of 500, all of an interval that is shorter, none without diagnostics."""
    watched = [step for step in range(1, 1001) if is_watched(step, 500)]

    assert watched == [*range(493, 501), *range(993, 1001)]
    assert all(is_watched(step, 5) for step in range(1, 20))
    assert not any(is_watched(step, 0) for step in range(1, 20))


@pytest.mark.parametrize("mode", ["symmetric", "absmean"])
def test_a_large_layer_is_read_on_evenly_spread_rows(mode):
    """Their codes are those that the whole layer has there."""
    model = make_model(weight_mode=mode)
    model.apply_schedule(60, 100)
    linear = model.blocks[0].ffn.up

    found = sampled_codes(linear, about=300)

    assert found.numel() < 2 * 300 + linear.weight.shape[1]
    assert found.dtype is torch.int8
    assert torch.equal(found.float(), linear.codes()[0][:: linear.weight.numel() // 300])


def test_a_layer_without_learned_columns_is_watched_too():
    """absmean has one scale for the matrix, and no threshold of its own."""
    model = make_model(weight_mode="absmean")
    model.apply_schedule(60, 100)
    diagnostics = Diagnostics(model)
    for step in (60, 61):
        diagnostics.watch_codes(step)

    found = diagnostics.collect()

    assert found["quant/flip_rate_per_step"] == 0.0
