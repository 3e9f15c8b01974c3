"""Series: the values of one name over time or steps, kept within a bound.

Curve      from its first point on, in full range: thinned where it grows too long
Window     the points of the last minutes, all of them
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

CURVE_POINTS_MAX: Final = 4096
_GROUP: Final = 4


class Sample(NamedTuple):
    """A value at a place: x is a step or a time in s, as the series has it."""

    x: float
    y: float


class Curve:
    """All points of a name. Each time that it is full, the least and the greatest of every
    four neighbours stay, in their order: no peak and no dip is lost."""

    def __init__(self, points_max: int = CURVE_POINTS_MAX) -> None:
        self._max = points_max
        self.points: list[Sample] = []
        self.is_thinned = False

    def add(self, x: float, y: float) -> None:
        self.points.append(Sample(x, y))
        if len(self.points) > self._max:
            self.points = thinned(self.points)
            self.is_thinned = True


def thinned(points: Sequence[Sample]) -> list[Sample]:
    """Return the least and the greatest of every four points, and the last point, in order.

    A value that is not a number is kept: it is what a person has to see.
    """
    kept: list[Sample] = []
    for start in range(0, len(points), _GROUP):
        group = points[start : start + _GROUP]
        odd = [point for point in group if point.y != point.y]
        numbers = [point for point in group if point.y == point.y]
        if numbers:
            least = min(range(len(numbers)), key=lambda i: numbers[i].y)
            greatest = max(range(len(numbers)), key=lambda i: numbers[i].y)
            kept += [numbers[i] for i in sorted({least, greatest})]
        kept += odd[:1]
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


class Window:
    """The points of the last seconds_max seconds, by their own times; x rises."""

    def __init__(self, seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self.points: deque[Sample] = deque()

    def add(self, x: float, y: float) -> None:
        self.points.append(Sample(x, y))
        while self.points[0].x < x - self._seconds_max:
            self.points.popleft()

    @property
    def last(self) -> Sample | None:
        return self.points[-1] if self.points else None


def last_seconds(points: Sequence[Sample] | deque[Sample], seconds: float) -> list[Sample]:
    """Return the points of the last seconds before the last point."""
    if not points:
        return []
    since = points[-1].x - seconds
    return [point for point in points if point.x >= since]


def spread(points: Sequence[Sample], buckets: int, seconds: float) -> list[float | None]:
    """Return the greatest value in each of as many equal parts of the last seconds.

    None where a part has no point: a hole is seen as a hole.
    """
    found: list[float | None] = [None] * buckets
    if not points or buckets <= 0 or seconds <= 0:
        return found
    end = points[-1].x
    for point in points:
        place = buckets - 1 - int((end - point.x) / seconds * buckets)
        if 0 <= place < buckets and point.y == point.y:
            before = found[place]
            found[place] = point.y if before is None else max(before, point.y)
    return found
