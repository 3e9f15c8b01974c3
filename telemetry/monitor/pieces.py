"""Pieces: parts of a line with a style, and the room that lines have.

A screen gives the styles colours, plain text leaves them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from telemetry.monitor.charts import ASCII_BLOCKS, BLOCKS, bar

PLAIN: Final = ""
DIM: Final = "dim"
STRONG: Final = "bold"
GOOD: Final = "good"
WARN: Final = "warn"
BAD: Final = "bad"


class Piece(NamedTuple):
    text: str
    style: str = PLAIN


Line = list[Piece]


@dataclass(frozen=True)
class Room:
    """The room and form of a panel: characters in a line, seconds of a sparkline."""

    width: int
    seconds: float = 300.0
    is_ascii: bool = False

    @property
    def blocks(self) -> str:
        return ASCII_BLOCKS if self.is_ascii else BLOCKS

    def bar(self, share: float | None, width: int) -> str:
        return bar(share, width, full="#", rest=".") if self.is_ascii else bar(share, width)


def fitted(line: Line, width: int) -> Line:
    """Return a line cut to a width in characters."""
    cut: Line = []
    left = width
    for piece in line:
        if left <= 0:
            break
        cut.append(Piece(piece.text[:left], piece.style))
        left -= len(piece.text)
    return cut
