"""The summary: what was recorded, and the commands that show it or finish the job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from telemetry.files import read_json
from telemetry.journal.layout import read_mark
from telemetry.runs import RUN_FILE


def print_summary(
    runs_dir: Path, run_ids: Iterable[str], backlog: Iterable[tuple[str, str]]
) -> None:
    """Say for each run what is there, and how to look at it."""
    behind = set(backlog)
    for run_id in run_ids:
        info = read_json(runs_dir / run_id / RUN_FILE) or {}
        for line in _lines(runs_dir / run_id, info, {s for r, s in behind if r == run_id}):
            print(line, file=sys.stderr)


def _lines(run_dir: Path, info: dict[str, Any], behind: set[str]) -> list[str]:
    mark = read_mark(run_dir / "journal")
    rows = mark.next_row if mark else 0
    state = info.get("status") or ("running" if info.get("state") != "ended" else "ended")
    lines = [f"telemetry: run {run_dir.name} ({info.get('name', '?')}): {rows:,} events, {state}"]
    if (run_dir / "tensorboard").is_dir():
        lines.append(_command("look", "tensorboard", "--logdir", run_dir / "tensorboard"))
    # One command each: with several paths, wandb stops at the first that a kill has torn.
    for path in unsynced_wandb_runs(run_dir):
        lines.append(_command("upload", "wandb", "sync", path))
    lines.append(_command("contents", "python", "-m", "telemetry", "inspect", run_dir))
    lines.append(
        _command("replay", "python", "-m", "telemetry", "replay", run_dir, "--to", "tensorboard")
    )
    for sink in sorted(behind):
        lines.append(_command("not finished", "python", "-m", "telemetry", "sink", sink, run_dir))
    return lines


def unsynced_wandb_runs(run_dir: Path) -> list[Path]:
    """Offline runs of wandb that were not uploaded, in order of their start."""
    found = sorted((run_dir / "wandb").glob("offline-run-*"))
    return [path for path in found if not any(path.glob("*.synced"))]


def _command(label: str, *words: object) -> str:
    return f"telemetry:   {label + ':':<13} {shlex.join(str(word) for word in words)}"
