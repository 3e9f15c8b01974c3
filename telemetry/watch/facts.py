"""Facts: states of runs and sinks that their threads publish once a second, for other threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class SinkStatus(NamedTuple):
    """State of one sink of one run, as the supervisor last saw it."""

    run_id: str
    sink: str
    state: str
    row: int
    restarts: int
    detail: str
    skipped: int = 0
    """Rows that the sink skipped because it can't take them."""
    left_out: int = 0
    """Values that the sink left out because it has no place for them."""


@dataclass(frozen=True)
class RunFacts:
    """One open run.

    silent_s: time since any of its trainers was heard, keepalives included.
    alerts: its open alerts, as run.json has them.
    """

    run_id: str
    name: str = ""
    project: str = ""
    is_host: bool = False
    is_started: bool = False
    is_ended: bool = False
    finish_status: str | None = None
    main_session: str | None = None
    silent_s: float = 0.0
    durable_row: int = 0
    alerts: tuple[dict[str, Any], ...] = ()


class Unrecorded(NamedTuple):
    """An alert that is active and that no journal has; run_id is empty for the machine."""

    run_id: str
    name: str
    subject: str
    severity: str


@dataclass(frozen=True)
class Situation:
    """All that the rules of alerts look at, beside the values themselves.

    free_bytes: free room where runs are recorded; None before it was looked at.
    """

    runs: tuple[RunFacts, ...] = ()
    sinks: Sequence[SinkStatus] = ()
    free_bytes: int | None = None
    is_writable: bool = True
    """False while alerts can't be recorded, because the disk has no room."""
