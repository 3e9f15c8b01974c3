"""Text: a snapshot as plain lines, or as JSON, for logs, pipes and scripts."""

from __future__ import annotations

import math
from typing import Any, Final

from telemetry.monitor.host_panels import host_lines, process_lines
from telemetry.monitor.pieces import Line, Piece, Room
from telemetry.monitor.process_panels import machine_lines, sorted_processes
from telemetry.monitor.processes import ProcessLine
from telemetry.monitor.run_panels import (
    alert_lines,
    header_line,
    message_lines,
    run_lines,
    table_lines,
)
from telemetry.monitor.snapshot import Snapshot

MESSAGES: Final = 8
ALERTS: Final = 20
PROCESSES: Final = 8
TOP: Final = 10


def plain_text(snapshot: Snapshot, room: Room) -> str:
    """Return a snapshot as lines for a person, without colours."""
    lines: list[Line] = [header_line(snapshot, room)]
    for problem in snapshot.problems:
        lines.append([Piece(f"problem: {problem}")])
    lines += alert_lines(snapshot, room, ALERTS)
    for host in snapshot.hosts:
        lines += [[], *host_lines(host, room)]
        if any(name.startswith("process/") for name in host.values):
            lines += process_lines(host, room)
    if not snapshot.hosts:
        lines += [[], [Piece("no sample of a machine yet")]]
    if snapshot.processes:
        lines += [[], *machine_lines(snapshot.processes, room, "cpu", shown=PROCESSES)]
    runs = [run for run in snapshot.runs if not run.is_host]
    if runs:
        lines += [[], *table_lines(runs[:20], room)]
        lines += [[], *run_lines(runs[0], room, 8)]
    said = message_lines(snapshot.runs, room, MESSAGES)
    if said:
        lines += [[], *said]
    return "\n".join("".join(piece.text for piece in line).rstrip() for line in lines)


def json_value(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as plain JSON values, with names and units as they are recorded.

    A number that JSON has no word for (NaN, infinity) is a text.
    """
    return {
        "wall_s": round(snapshot.wall_s, 3),
        "place": snapshot.place,
        "sidecar_pid": snapshot.sidecar or None,
        "is_complete": snapshot.is_complete,
        "problems": list(snapshot.problems),
        "hosts": [
            {
                "host": host.name,
                "wall_s": host.wall_s,
                "is_quiet": host.is_quiet,
                "values": {name: _plain(value) for name, value in host.values.items()},
            }
            for host in snapshot.hosts
        ],
        "processes": [
            {
                "pid": line.pid,
                "user": line.user,
                "cpu_cores": line.cpu_cores,
                "rss_bytes": line.rss_bytes,
                "threads": line.threads,
                "command": line.command,
                "of": line.of or None,
            }
            for line in _top(snapshot)
        ],
        "runs": [
            {
                "run_id": run.run_id,
                "name": run.name,
                "project": run.project,
                "state": run.state,
                "rows": run.rows,
                "step": run.step,
                "total_steps": run.total_steps,
                "loss_name": run.loss_name or None,
                "loss": _plain(run.loss),
                "val_loss": _plain(run.val_loss),
                "stage": run.stage or None,
                "tokens_per_second": _plain(run.tokens_per_second),
                "steps_per_second": _plain(run.steps_per_second),
                "seconds_left": _plain(run.seconds_left),
                "missing_events": run.gap_events,
                "damaged_parts": run.damaged_parts,
                "sinks": {
                    sink.name: {"rows_behind": sink.rows, "is_done": sink.is_done}
                    for sink in run.sinks
                },
                "alerts": [alert._asdict() for alert in run.alerts],
            }
            for run in snapshot.runs
        ],
    }


def _top(snapshot: Snapshot) -> list[ProcessLine]:
    """Return the processes that use most CPU, and those that use most memory."""
    first = [sorted_processes(snapshot.processes, by)[:TOP] for by in ("cpu", "memory")]
    return list(dict.fromkeys([*first[0], *first[1]]))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
