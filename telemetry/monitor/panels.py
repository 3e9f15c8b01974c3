"""Panels: the lines of a snapshot, in pieces of text with a style, for any width.

In: a snapshot, the width in characters, the seconds that sparklines cover.
Out: lines of `Piece`; a screen gives the styles colours, plain text leaves them out.
Never: a line wider than the width, or a control character of what a producer named.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from shared.text import clean
from telemetry.monitor.charts import ASCII_BLOCKS, BLOCKS, bar, curve, sparkline
from telemetry.monitor.figures import (
    MISSING,
    as_float,
    bytes_text,
    count_text,
    devices,
    duration_text,
    number_text,
)
from telemetry.monitor.watch import HostLine, RunLine, Snapshot
from telemetry.views.series import last_seconds, spread

PLAIN: Final = ""
DIM: Final = "dim"
STRONG: Final = "bold"
GOOD: Final = "good"
WARN: Final = "warn"
BAD: Final = "bad"
_WIDTHS: Final = (6, 11, 7, 9, 7, 13, 13)
_HEADS: Final = ("cores", "memory", "procs", "threads", "files", "read", "write")
_PROCESS_HEAD: Final = "".join(
    f"{head:>{width}}" for head, width in zip(_HEADS, _WIDTHS, strict=True)
)
_RATES: Final = (
    ("disk", "disk", ("read", "read_bytes_per_second"), ("write", "write_bytes_per_second")),
    ("network", "network", ("in", "received_bytes_per_second"), ("out", "sent_bytes_per_second")),
)


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


def header_line(snapshot: Snapshot, room: Room) -> Line:
    """Return the first line: the place, and the sidecar that records it."""
    at_work = f"sidecar {snapshot.sidecar}" if snapshot.sidecar else "no sidecar at work here"
    clock = time.strftime("%H:%M:%S", time.localtime(snapshot.wall_s))
    pieces = [Piece("telemetry monitor", STRONG), Piece(f"  {clock}  {at_work}")]
    if not snapshot.is_complete:
        read = min((run.read_ratio for run in snapshot.runs), default=0.0)
        pieces.append(Piece(f"  reading journals: {read:.0%}", WARN))
    return fitted([*pieces, Piece(f"  {clean(snapshot.place)}", DIM)], room.width)


def host_lines(host: HostLine, room: Room) -> list[Line]:
    """Return a machine: processor, memory, disks and networks, then its GPUs."""
    age = f"  no sample for {duration_text(time.time() - host.wall_s)}" if host.is_quiet else ""
    lines: list[Line] = [[Piece(clean(host.name, 60), STRONG), Piece(age, BAD)]]
    lines += _processor(host, room)
    lines += _rates(host, room)
    lines += gpu_lines(host, room)
    return [fitted(line, room.width) for line in lines]


def _processor(host: HostLine, room: Room) -> list[Line]:
    values = host.values
    load = [number_text(as_float(values, f"load/{span}"), 3) for span in ("1m", "5m", "15m")]
    used, free = as_float(values, "memory/used_bytes"), as_float(values, "memory/available_bytes")
    total = used + free if used is not None and free is not None else None
    notes = f"{bytes_text(used)} of {bytes_text(total)}"
    swap = as_float(values, "swap/used_bytes")
    if swap:
        notes += f"  swap {bytes_text(swap)}"
    return [
        _percent_line(host, room, "cpu", "cpu_percent", f"load {' '.join(load)}"),
        _percent_line(host, room, "memory", "memory_percent", notes),
    ]


def _percent_line(host: HostLine, room: Room, label: str, name: str, notes: str) -> Line:
    percent = as_float(host.values, name)
    style = PLAIN if percent is None else BAD if percent >= 95 else WARN if percent >= 85 else GOOD
    width = max(6, min(24, room.width // 6))
    share = None if percent is None else percent / 100
    text = f"{percent:5.1f} %" if percent is not None else f"{MISSING:>7}"
    return [
        Piece(f" {label:<8}"),
        Piece(room.bar(share, width), style),
        Piece(f" {text}  "),
        Piece(_spark(host, name, room, 0.0, 100.0), style),
        Piece(f"  {notes}", DIM),
    ]


def _spark(
    host: HostLine, name: str, room: Room, low: float = 0.0, high: float | None = None
) -> str:
    points = last_seconds(host.points.get(name, []), room.seconds)
    width = max(8, min(60, room.width // 4))
    values = spread(points, width, room.seconds)
    top = max((value for value in values if value is not None), default=0.0)
    return sparkline(values, low, top if high is None else high, blocks=room.blocks)


def _rates(host: HostLine, room: Room) -> list[Line]:
    """Return two lines, disk and network, and one more for each device that has its own rates."""
    lines = []
    for label, group, first, second in _RATES:
        lines.append(_rate_line(host, room, label, group, first, second))
        for device in devices(host.values, group):
            place = f"{group}/{device}"
            if f"{place}/{first[1]}" in host.values:
                lines.append(_rate_line(host, room, f" {clean(device, 7)}", place, first, second))
    return lines


def _rate_line(
    host: HostLine,
    room: Room,
    label: str,
    place: str,
    first: tuple[str, str],
    second: tuple[str, str],
) -> Line:
    line = [Piece(f" {label:<8}")]
    for word, name in (first, second):
        text = _rate_text(as_float(host.values, f"{place}/{name}"))
        half = Room(room.width // 2, room.seconds, room.is_ascii)
        line += [
            Piece(f"{word:<5} {text:>11} "),
            Piece(_spark(host, f"{place}/{name}", half), GOOD),
            Piece("  "),
        ]
    return line


def host_charts(host: HostLine, room: Room, height: int) -> list[Line]:
    """Return charts of a machine's shares over the last minutes, `height` lines each."""
    names = [("cpu %", "cpu_percent"), ("memory %", "memory_percent")]
    names += [
        (f"gpu {clean(index, 8)} %", f"gpu/{index}/utilization_percent")
        for index in devices(host.values, "gpu")
    ]
    lines: list[Line] = []
    for label, name in names:
        points = last_seconds(host.points.get(name, []), room.seconds)
        if not points:
            continue
        ends = (f"{duration_text(points[-1].x - points[0].x)} ago", "now")
        drawn = curve(
            [points], room.width, height, span=(0, 100), ends=ends, is_ascii=room.is_ascii
        )
        lines += [[Piece(f" {label}", STRONG)], *([Piece(text, GOOD)] for text in drawn)]
    return [fitted(line, room.width) for line in lines]


def gpu_lines(host: HostLine, room: Room) -> list[Line]:
    """Return a line for each GPU of a machine."""
    return [_gpu_line(host, index, room) for index in devices(host.values, "gpu")]


def _gpu_line(host: HostLine, index: str, room: Room) -> Line:
    def value(name: str) -> float | None:
        return as_float(host.values, f"gpu/{index}/{name}")

    used, share = value("memory_used_bytes"), value("memory_percent")
    heat, power, limit = (
        value("temperature_celsius"),
        value("power_watts"),
        value("power_limit_watts"),
    )
    throttled = [
        name.rpartition("/")[2]
        for name, is_so in host.values.items()
        if name.startswith(f"gpu/{index}/throttle/") and is_so is True
    ]
    line = _percent_line(
        host, room, f"gpu {clean(index, 8)}", f"gpu/{index}/utilization_percent", ""
    )[:-1]
    notes = f"  memory {number_text(share, 3)} % {bytes_text(used)}"
    if heat is not None:
        notes += f"  {heat:.0f} °C" if not room.is_ascii else f"  {heat:.0f} C"
    if power is not None:
        notes += f"  {power:.0f}{f' of {limit:.0f}' if limit else ''} W"
    if throttled:
        line.append(Piece(f"throttled: {clean(' '.join(throttled), 60)}  ", BAD))
    line.append(Piece(notes.strip(), DIM))
    return line


def process_lines(host: HostLine, room: Room) -> list[Line]:
    """Return the training processes of a machine, each with its descendants, by CPU use."""
    places = {"/".join(name.split("/")[:3]) for name in host.values if name.startswith("process/")}
    if not places:
        text = f" no training process is known on {clean(host.name, 60)}"
        return [[Piece(text, DIM)]]

    def value(place: str, name: str) -> float | None:
        return as_float(host.values, f"{place}/{name}")

    lines: list[Line] = [[Piece(_PROCESS_HEAD, DIM)]]
    for place in sorted(places, key=lambda place: -(value(place, "cpu_cores") or 0.0)):
        cells = (
            number_text(value(place, "cpu_cores"), 3),
            bytes_text(value(place, "rss_bytes")),
            number_text(value(place, "processes"), 6),
            number_text(value(place, "threads"), 6),
            number_text(value(place, "open_files"), 6),
            _rate_text(value(place, "read_bytes_per_second")),
            _rate_text(value(place, "write_bytes_per_second")),
        )
        numbers = "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
        _, run_id, source = [*place.split("/"), "", ""][:3]
        lines.append([Piece(f"{numbers}  {clean(source, 24)} of {clean(run_id, 64)}")])
    return [fitted(line, room.width) for line in lines]


def _rate_text(value: float | None) -> str:
    return MISSING if value is None else f"{bytes_text(value)}/s"


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
