"""Process panels: the lines of all processes of this machine, in an order that the user chose.

In: the processes of a snapshot, and the room.
Out: lines of `Piece`, none wider than the room, with names from outside made safe to print.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from shared.text import clean
from telemetry.monitor.figures import bytes_text, number_text
from telemetry.monitor.pieces import DIM, GOOD, PLAIN, STRONG, Line, Piece, Room, fitted
from telemetry.monitor.processes import ProcessLine

ORDERS: Final[dict[str, Callable[[ProcessLine], Any]]] = {
    "cpu": lambda line: (-(line.cpu_cores or 0.0), -line.rss_bytes),
    "memory": lambda line: -line.rss_bytes,
    "threads": lambda line: -line.threads,
    "pid": lambda line: line.pid,
    "command": lambda line: line.command.lower(),
}
"""Orders of the page, by the names that it shows."""
SHOWN_MAX: Final = 200
COMMAND_CHARS: Final = 300
_COLUMNS: Final = (("pid", 8), ("cores", 7), ("memory", 11), ("threads", 9))
_NARROW: Final = 50
"""Below this width threads and users are left out."""


def sorted_processes(lines: Sequence[ProcessLine], order: str) -> list[ProcessLine]:
    return sorted(lines, key=ORDERS[order])


def machine_lines(
    processes: Sequence[ProcessLine],
    room: Room,
    order: str,
    words: str = "",
    shown: int = SHOWN_MAX,
) -> list[Line]:
    """Return the processes of this machine; words: only those with these in their line."""
    found = [line for line in processes if words in _searched(line)]
    columns = _COLUMNS[: 4 if room.width >= _NARROW else 3]
    head = "".join(f"{name:>{width}}" for name, width in columns)
    user = f"  {'user':<9}" if room.width >= _NARROW else ""
    counted = f"{len(found)} of {len(processes)}" if words else str(len(processes))
    lines: list[Line] = [
        [
            Piece(f" {counted} processes of this machine by {order}", STRONG),
            Piece("  not recorded; training: green", DIM),
        ],
        [Piece(f"{head}{user}  command", DIM)],
    ]
    lines += [_line(line, room, len(columns)) for line in sorted_processes(found, order)[:shown]]
    if len(found) > shown:
        lines.append([Piece(f" {len(found) - shown} more", DIM)])
    return [fitted(line, room.width) for line in lines]


def _line(line: ProcessLine, room: Room, columns: int) -> Line:
    cores = "-" if line.cpu_cores is None else f"{line.cpu_cores:.2f}"
    cells = (str(line.pid), cores, bytes_text(line.rss_bytes), number_text(line.threads, 6))
    numbers = "".join(
        f"{cell:>{width}}" for cell, (_, width) in zip(cells[:columns], _COLUMNS, strict=False)
    )
    user = f"  {clean(line.user, 9):<9.9}" if room.width >= _NARROW else ""
    style = GOOD if line.of else PLAIN
    of = [Piece(f"  {clean(line.of, 64)}", GOOD)] if line.of else []
    command = clean(line.command, COMMAND_CHARS)
    return [Piece(f"{numbers}{user}", style), *of, Piece(f"  {command}", style)]


def _searched(line: ProcessLine) -> str:
    return f"{line.pid} {line.user} {line.command} {line.of}".lower()
