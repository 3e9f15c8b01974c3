"""Event lines: lines of text for events that have no values.

In: an event.
Out: a line of text, or names and values to show.
Never: omits a count.
"""

from __future__ import annotations

from typing import Any, Final

from shared.events import Gap, PartialEvent, RunFinished, RunStarted
from shared.text import clean
from telemetry.sinks.tensorboard.run_config import flat_config

LINE_MAX_CHARS: Final = 10_000


def shown(text: str) -> str:
    """Return a text with unprintable characters escaped, line by line."""
    return "\n".join(clean(line, LINE_MAX_CHARS) for line in text.split("\n"))


def gap(event: Gap) -> str:
    """Return a line like `12 events missing (train 10): queue full; up to 30 ms unknown`."""
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(event.by_kind.items()))
    text = f"{event.count:,} events missing{f' ({kinds})' if kinds else ''}: {event.reason}"
    return text if event.unknown_ms is None else f"{text}; up to {event.unknown_ms:g} ms unknown"


def started(event: RunStarted) -> str:
    """Return a line like `started: rank 0 of 2 on node1, pid 4711, resumed from step 1,000`."""
    text = f"started: rank {event.rank} of {event.world_size} on {event.host}, pid {event.pid}"
    if event.resumed_from_step is None:
        return text
    return f"{text}, resumed from step {event.resumed_from_step:,}"


def finished(event: RunFinished) -> str:
    """Return a line like `failed, exit code 1; best_loss 2.5`."""
    code = "" if event.exit_code is None else f", exit code {event.exit_code}"
    summary = ", ".join(f"{name} {value}" for name, value in flat_config(event.summary).items())
    return f"{event.status}{code}{f'; {summary}' if summary else ''}"


def left_out(names: list[str], reason: str, event: PartialEvent) -> str:
    """Return a line like `left out: loss, lr (None is not a number)`."""
    shown = ", ".join(names)
    unnamed = event.left_out_count - len(event.left_out)
    more = f", and {unnamed:,} more without their names" if unnamed > 0 else ""
    return f"left out: {shown} ({reason}){more}"


def description(event: RunStarted) -> dict[str, Any]:
    """Return the names, tags and notes of a run, to show above its configuration."""
    about = {
        "project": event.project,
        "name": event.name,
        "group": event.group,
        "tags": ", ".join(event.tags),
        "notes": event.notes,
    }
    return {f"run.{name}": value for name, value in about.items() if value}
