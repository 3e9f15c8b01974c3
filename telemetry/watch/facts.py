"""Facts: what the journal thread publishes of its runs once a second, for other threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from telemetry.supervise.sink_process import SinkStatus


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


@dataclass(frozen=True)
class Situation:
    """All that the rules of alerts look at, beside the values themselves.

    free_bytes: free room where runs are recorded; None before it was looked at.
    """

    runs: tuple[RunFacts, ...] = ()
    sinks: Sequence[SinkStatus] = ()
    free_bytes: int | None = None
