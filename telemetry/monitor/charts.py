"""Charts: lines of text that draw values, for any terminal.

In: values, and the room in characters.
Out: strings of exactly that room.
Never: draws a hole as a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from telemetry.monitor.figures import number_text
from telemetry.views.series import Sample

BLOCKS: Final = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS: Final = " .:-=+*#@"
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a braille character, by row and column."""


def sparkline(
    values: Sequence[float | None], low: float, high: float, *, blocks: str = BLOCKS
) -> str:
    """Draw one character a value; a value that is not there is a blank, the least a low block."""
    span = high - low
    drawn = []
    for value in values:
        if value is None:
            drawn.append(" ")
            continue
        share = (value - low) / span if span > 0 else 0.0
        drawn.append(blocks[1 + round(min(1.0, max(0.0, share)) * (len(blocks) - 2))])
    return "".join(drawn)


def bar(share: float | None, width: int, *, full: str = "█", rest: str = "░") -> str:
    """Draw a share of 1 as a bar of `width` characters."""
    if share is None or not math.isfinite(share):
        return " " * width
    filled = round(min(1.0, max(0.0, share)) * width)
    return full * filled + rest * (width - filled)


def curve(
    lines: Sequence[Sequence[Sample]],
    width: int,
    height: int,
    *,
    span: tuple[float, float] | None = None,
    ends: tuple[str, str] | None = None,
    is_ascii: bool = False,
) -> list[str]:
    """Draw curves over a common range of x and y, with the numbers of its axes.

    span: the least and greatest y; of the values themselves where it is None.
    ends: texts at the two ends of the x axis; the numbers where it is None.
    Returns `height` lines of `width` characters; the last line has the range of x.
    """
    points = [point for line in lines for point in line if math.isfinite(point.y)]
    label = 9
    plot_width, plot_height = width - label - 1, height - 1
    if not points or plot_width < 4 or plot_height < 2:
        return [("no values yet" if not points else "").ljust(width)[:width]] + [
            " " * width for _ in range(height - 1)
        ]
    xs, ys = [p.x for p in points], [p.y for p in points]
    low_x, high_x = min(xs), max(xs)
    low_y, high_y = span or (min(ys), max(ys))
    columns, rows = plot_width * 2, plot_height * 4
    grid = [[0] * plot_width for _ in range(plot_height)]

    def place(point: Sample) -> tuple[int, int]:
        x = 0.0 if high_x == low_x else (point.x - low_x) / (high_x - low_x)
        y = 0.5 if high_y == low_y else (point.y - low_y) / (high_y - low_y)
        y = min(1.0, max(0.0, y))
        return round(x * (columns - 1)), round((1 - y) * (rows - 1))

    def dot(column: int, row: int) -> None:
        grid[row // 4][column // 2] |= _DOTS[row % 4][column % 2]

    for line in lines:
        before: tuple[int, int] | None = None
        for point in line:
            if not math.isfinite(point.y):
                before = None
                continue
            now = place(point)
            for column, row in _between(before or now, now):
                dot(column, row)
            before = now
    drawn = []
    for index, cells in enumerate(grid):
        text = "".join(_cell(bits, is_ascii=is_ascii) for bits in cells)
        name = {0: number_text(high_y), plot_height - 1: number_text(low_y)}.get(index, "")
        drawn.append(f"{name:>{label}.{label}} {text}")
    first, last = ends or (number_text(low_x, 9), number_text(high_x, 9))
    axis = f"{first}{last:>{max(0, plot_width - len(first))}}"
    drawn.append(f"{'':{label}} {axis:.{plot_width}}".ljust(width))
    return drawn


def _cell(bits: int, *, is_ascii: bool) -> str:
    if not bits:
        return " "
    return "*" if is_ascii else chr(0x2800 + bits)


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the dots of a straight line between two dots."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (
            round(start[0] + (end[0] - start[0]) * step / steps),
            round(start[1] + (end[1] - start[1]) * step / steps),
        )
        for step in range(steps + 1)
    ]
