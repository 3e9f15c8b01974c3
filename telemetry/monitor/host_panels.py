"""Host panels: the lines of a machine: processor, memory, devices, GPUs, training processes.

In: a machine of a snapshot, and the room.
Out: lines of `Piece`, none wider than the room, with names from outside made safe to print.
"""

from __future__ import annotations

import time
from typing import Final

from shared.text import clean
from telemetry.monitor.charts import curve, sparkline
from telemetry.monitor.figures import (
    MISSING,
    as_float,
    bytes_text,
    devices,
    duration_text,
    number_text,
)
from telemetry.monitor.pieces import BAD, DIM, GOOD, PLAIN, STRONG, WARN, Line, Piece, Room, fitted
from telemetry.monitor.snapshot import HostLine
from telemetry.views.series import last_seconds, spread

_WIDTHS: Final = (6, 11, 7, 9, 7, 13, 13)
_HEADS: Final = ("cores", "memory", "procs", "threads", "files", "read", "write")
_PROCESS_HEAD: Final = "".join(
    f"{head:>{width}}" for head, width in zip(_HEADS, _WIDTHS, strict=True)
)
_CPU_LIMIT: Final = "cgroup/cpu_limit_cores"
_MEMORY_LIMIT: Final = "cgroup/memory_limit_bytes"
_RATES: Final = (
    ("disk", "disk", ("read", "read_bytes_per_second"), ("write", "write_bytes_per_second")),
    ("network", "network", ("in", "received_bytes_per_second"), ("out", "sent_bytes_per_second")),
)


def host_lines(host: HostLine, room: Room) -> list[Line]:
    """Return a machine: processor, memory, disks and networks, then its GPUs."""
    age = f"  no sample for {duration_text(time.time() - host.wall_s)}" if host.is_quiet else ""
    lines: list[Line] = [[Piece(clean(host.name, 60), STRONG), Piece(age, BAD)]]
    lines += _processor(host, room)
    lines += _rates(host, room)
    lines += [line for line in (_container(host), _waits(host)) if line]
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


def _container(host: HostLine) -> Line:
    """Return what our control group uses, of how much where it is held to a limit."""
    values = host.values
    parts = []
    cores, most = as_float(values, "cgroup/cpu_used_cores"), as_float(values, _CPU_LIMIT)
    if cores is not None:
        parts.append(f"cpu {cores:.2f}{f' of {most:g}' if most else ''} cores")
    throttled = as_float(values, "cgroup/cpu_throttled_seconds_per_second")
    if throttled:
        parts.append(f"throttled {throttled:.2f} s/s")
    used, limit = as_float(values, "cgroup/memory_used_bytes"), as_float(values, _MEMORY_LIMIT)
    if used is not None:
        parts.append(f"memory {bytes_text(used)}{f' of {bytes_text(limit)}' if limit else ''}")
    kills = as_float(values, "cgroup/oom_kills_total")
    if kills:
        parts.append(f"killed for memory {kills:.0f}")
    return [Piece(" container "), Piece("  ".join(parts), DIM)] if parts else []


def _waits(host: HostLine) -> Line:
    """Return the share of time in which some task waited for a resource."""
    named = (("cpu", "cpu"), ("memory", "memory"), ("disk", "io"))
    shares = [(word, as_float(host.values, f"pressure/{r}_some_ratio")) for word, r in named]
    parts = [f"{word} {100 * share:.0f} %" for word, share in shares if share is not None]
    return [Piece(" waits for "), Piece("  ".join(parts), DIM)] if parts else []


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
