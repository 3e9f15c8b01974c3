"""Run panels: the lines of runs: the table, one run with its curve, alerts and messages.

In: the runs of a snapshot, and the room.
Out: lines of `Piece`, none wider than the room, with names from outside made safe to print.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from shared.text import clean
from telemetry.monitor.charts import curve
from telemetry.monitor.figures import MISSING, count_text, duration_text, number_text
from telemetry.monitor.pieces import BAD, DIM, GOOD, PLAIN, STRONG, WARN, Line, Piece, Room, fitted
from telemetry.monitor.snapshot import RunLine, Snapshot

COLUMNS: Final = ("run", "state", "step", "loss", "val", "stage", "tok/s", "left", "sinks")


def run_cells(run: RunLine) -> list[str]:
    """Return the cells of a run in a table, one for each of `COLUMNS`."""
    step = MISSING if run.step is None else f"{run.step:,}"
    if run.total_steps and run.step is not None:
        step += f" ({run.step / run.total_steps:.0%})"
    return [
        clean(run.name, 40),
        run.state if run.read_ratio > 0.999 else f"reading {run.read_ratio:.0%}",
        step,
        number_text(run.loss),
        number_text(run.val_loss),
        clean(run.stage, 16) or MISSING,
        count_text(run.tokens_per_second),
        duration_text(run.seconds_left),
        sinks_text(run),
    ]


def sinks_text(run: RunLine) -> str:
    """Return each sink of a run with the number of rows that it does not have yet."""
    parts = []
    for sink in run.sinks:
        behind = "has all" if sink.rows == 0 else f"{count_text(sink.rows)} behind"
        parts.append(f"{clean(sink.name, 12)} {behind}")
    return ", ".join(parts) or MISSING


def run_lines(run: RunLine, room: Room, height: int = 12) -> list[Line]:
    """Return one run: its facts, and the curve of its loss."""
    cells = dict(zip(COLUMNS, run_cells(run), strict=True))
    facts = [
        Piece(cells["run"], STRONG),
        Piece(f"  {cells['state']}", GOOD if run.state in ("running", "finished") else WARN),
        Piece(f"  step {cells['step']}"),
    ]
    if run.loss_name:
        facts.append(Piece(f"  {clean(run.loss_name, 40)} {cells['loss']}"))
    for label, key in (("val", "val"), ("", "stage"), ("tok/s", "tok/s"), ("left", "left")):
        if cells[key] != MISSING:
            facts.append(Piece(f"  {label} {cells[key]}".replace("   ", "  ")))
    lines: list[Line] = [facts, [Piece(f"  sinks: {cells['sinks']}", DIM)]]
    if run.gap_events:
        lines.append([Piece(f"  {run.gap_events:,} events are missing", WARN)])
    if run.damaged_parts:
        lines.append([Piece(f"  damaged parts of its journal: {run.damaged_parts:,}", WARN)])
    if run.curve and height > 3:
        drawn = curve([run.curve, run.val_curve], room.width, height, is_ascii=room.is_ascii)
        lines += [[Piece(text, GOOD)] for text in drawn]
        if run.is_thinned:
            lines.append(
                [Piece("  each point of the curve is the least or greatest of several", DIM)]
            )
    return [fitted(line, room.width) for line in lines]


def table_lines(runs: Sequence[RunLine], room: Room) -> list[Line]:
    """Return runs as a table with a line each; columns that do not fit are left out."""
    rows = [list(COLUMNS), *(run_cells(run) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    shown, used = [], 1
    for index in (0, 2, 3, 1, 7, 4, 6, 5, 8):
        if used + widths[index] + 2 <= room.width:
            shown.append(index)
            used += widths[index] + 2
    shown.sort()
    lines: list[Line] = []
    for number, row in enumerate(rows):
        text = " " + "  ".join(_aligned(row[i], widths[i], i) for i in shown)
        lines.append([Piece(text, DIM if number == 0 else PLAIN)])
    return [fitted(line, room.width) for line in lines]


def _aligned(text: str, width: int, index: int) -> str:
    return text.rjust(width) if index in (2, 3, 4, 6, 7) else text.ljust(width)


def header_line(snapshot: Snapshot, room: Room) -> Line:
    """Return the first line: the place, and the sidecar that records it."""
    at_work = f"sidecar {snapshot.sidecar}" if snapshot.sidecar else "no sidecar at work here"
    clock = time.strftime("%H:%M:%S", time.localtime(snapshot.wall_s))
    pieces = [Piece("telemetry monitor", STRONG), Piece(f"  {clock}  {at_work}")]
    if not snapshot.is_complete:
        read = min((run.read_ratio for run in snapshot.runs), default=0.0)
        pieces.append(Piece(f"  reading journals: {read:.0%}", WARN))
    return fitted([*pieces, Piece(f"  {clean(snapshot.place)}", DIM)], room.width)


def alert_lines(snapshot: Snapshot, room: Room, count: int) -> list[Line]:
    """Return the conditions that have begun and not ended, the newest first."""
    found = sorted({alert for run in snapshot.runs for alert in run.alerts}, reverse=True)
    lines: list[Line] = []
    for alert in found[:count]:
        lasted = duration_text(snapshot.wall_s - alert.wall_s)
        style = BAD if alert.severity in ("error", "critical") else WARN
        text = clean(alert.text, 400)
        lines.append([Piece(f" ! {text}", style), Piece(f"  for {lasted}", DIM)])
    if len(found) > count:
        lines.append([Piece(f" ! {len(found) - count} more", WARN)])
    return [fitted(line, room.width) for line in lines]


def message_lines(runs: Iterable[RunLine], room: Room, count: int) -> list[Line]:
    """Return the newest messages of all runs, the newest last."""
    found = [(message, run.name) for run in runs for message in run.messages]
    found.sort(key=lambda each: each[0].wall_s)
    lines: list[Line] = []
    for message, name in found[-count:]:
        clock = time.strftime("%m-%d %H:%M:%S", time.localtime(message.wall_s))
        style = {"critical": BAD, "error": BAD, "warning": WARN}.get(message.level, PLAIN)
        lines.append(
            [
                Piece(f" {clock} ", DIM),
                Piece(f"{clean(name, 24)}: ", DIM),
                Piece(clean(message.text, 1000), style),
            ]
        )
    return [fitted(line, room.width) for line in lines]
