"""Charts: drawn in exactly the room that they are given."""

from __future__ import annotations

import math

import pytest

from telemetry.monitor.charts import ASCII_BLOCKS, bar, curve, sparkline
from telemetry.monitor.figures import bytes_text, count_text, duration_text, loss_name, number_text
from telemetry.views.series import Sample


def test_a_sparkline_shows_least_greatest_and_hole():
    assert sparkline([0.0, None, 50.0, 100.0, 1000.0], 0, 100) == "▁ ▅██"
    assert sparkline([0.0, 100.0], 0, 100, blocks=ASCII_BLOCKS) == ".@"
    assert sparkline([5.0, 5.0], 5, 5) == "▁▁"


@pytest.mark.parametrize(("share", "full"), [(0.0, 0), (0.5, 5), (1.0, 10), (7.0, 10), (-1.0, 0)])
def test_a_bar_is_as_long_as_its_share(share, full):
    assert bar(share, 10) == "█" * full + "░" * (10 - full)
    assert bar(None, 10) == bar(math.nan, 10) == " " * 10


@pytest.mark.parametrize(
    ("width", "height"), [(80, 10), (40, 5), (14, 3), (20, 40), (8, 2), (0, 1)]
)
@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_a_curve_fills_its_room_and_no_more(width, height, count):
    points = [Sample(i, math.sin(i / 10)) for i in range(count)]

    for is_ascii in (False, True):
        lines = curve([points], width, height, is_ascii=is_ascii)

        assert len(lines) == height and all(len(line) <= width for line in lines)
        assert not is_ascii or all(line.isascii() for line in lines)


def test_a_falling_curve_falls():
    points = [Sample(i, 10.0 - i) for i in range(11)]

    lines = curve([points], 30, 8)

    first = [line.index(next(c for c in line[10:] if c != " "), 10) for line in lines[:-1]]
    assert first == sorted(first) and lines[0].startswith("       10") and "0" in lines[-2]


def test_what_is_no_number_interrupts_a_curve_and_is_not_drawn():
    points = [Sample(0, 1.0), Sample(1, math.nan), Sample(2, math.inf), Sample(3, 2.0)]

    drawn = "".join(line[10:] for line in curve([points], 60, 6)[:-1])

    assert len(drawn.replace(" ", "")) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"), (bytes_text(1536), "1.5 KiB"), (bytes_text(5 * 2**30), "5.0 GiB"),
        (bytes_text(None), "-"), (bytes_text(2.0**80), "1073741824.0 PiB"),
        (count_text(12_345), "12.3k"), (count_text(2.5e6), "2.5M"), (count_text(0.5), "0.5"),
        (duration_text(59), "59 s"), (duration_text(61), "1 min 1 s"),
        (duration_text(3 * 86_400 + 7200), "3 d 2 h"), (duration_text(math.inf), "-"),
        (number_text(math.nan), "nan"), (number_text(1234.5678), "1235"), (number_text(3.0), "3"),
    ],
)  # fmt: skip
def test_numbers_are_texts_that_people_read(text, expected):
    assert text == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["val/loss", "train/loss", "loss"], "train/loss"),
        (["val_loss", "my/total_loss"], "my/total_loss"),
        (["eval/loss", "accuracy"], ""),
    ],
)
def test_the_training_loss_is_found_under_the_names_that_people_give_it(names, expected):
    assert loss_name(names) == expected
