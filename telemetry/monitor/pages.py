"""Pages: the panels of a snapshot put together for a screen of a given size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from telemetry.monitor.host_panels import host_charts, host_lines
from telemetry.monitor.pieces import DIM, Line, Piece, Room
from telemetry.monitor.run_panels import alert_lines, message_lines, run_lines, table_lines
from telemetry.monitor.snapshot import HostLine, Snapshot

WIDE: Final = 130
"""From this width on the overview has two columns."""


def overview(snapshot: Snapshot, room: Room, height: int) -> list[Line]:
    """Return machines, runs and what was said last; in two columns where there is room."""
    is_wide = room.width >= WIDE
    half = replace(room, width=room.width // 2 - 1) if is_wide else room
    left = joined(host_lines(host, half) for host in snapshot.hosts)
    if not snapshot.hosts:
        left = [[Piece("no sample of a machine yet", DIM)]]
    runs = [run for run in snapshot.runs if not run.is_host]
    right: list[Line] = table_lines(runs[: max(3, height // 4)], half) if runs else []
    used = len(right) if is_wide else len(left) + len(right)
    if runs:
        right += [[], *run_lines(runs[0], half, min(16, max(5, height - used - 8)))]
    else:
        right += [[Piece("no training run here; hardware is recorded all the same", DIM)]]
    lines = _beside(left, right, half.width) if is_wide else [*left, [], *right]
    lines = [*alert_lines(snapshot, room, max(2, height // 6)), *lines]
    said = message_lines(snapshot.runs, room, max(3, height - len(lines) - 2))
    return [*lines, [], *said]


def host_page(host: HostLine, room: Room, height: int) -> list[Line]:
    lines = host_lines(host, room)
    rows = max(6, min(12, (height - len(lines) - 4) // 2))
    return [*lines, [], *host_charts(host, room, rows)]


def _beside(left: list[Line], right: list[Line], width: int) -> list[Line]:
    rows = max(len(left), len(right))
    left, right = left + [[]] * (rows - len(left)), right + [[]] * (rows - len(right))
    lines = []
    for first, second in zip(left, right, strict=True):
        used = sum(len(piece.text) for piece in first)
        lines.append([*first, Piece(" " * (width - used + 2)), *second])
    return lines


def joined(panels: Iterable[list[Line]]) -> list[Line]:
    lines: list[Line] = []
    for panel in panels:
        lines += [*([[]] if lines else []), *panel]
    return lines
