"""The supervisor under its earlier name: for scripts that know the rule on plain values.

Nothing in this project uses it: see shared/moved.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from telemetry.run_dir import CursorState, RunState, sink_is_done, typed
from telemetry.supervise.supervisor import Supervisor, sink_command

__all__ = ["Supervisor", "_has_all", "sink_command"]


def _has_all(cursor: Mapping[str, Any] | None, run: Mapping[str, Any]) -> bool:
    """Return True if a sink has all of a run, by the contents of its cursor and of run.json."""
    known = None if cursor is None else typed(cursor, CursorState, "the cursor")
    return sink_is_done(known, typed(run, RunState, "run.json"))
