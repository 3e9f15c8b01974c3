"""kill -9 of a whole sink process, at points of its own choosing."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

from telemetry.sinks.wandb.offline import fragment_paths

from .journal import expected_history, mixed_journal, steps, written_history
from .surroundings import RUN_ID

COUNT = 2000
KILLS = 4


def test_every_row_is_there_once_after_kills_at_random_points(tmp_path: Path) -> None:
    """Whatever wandb-core had not written is sent again, and nothing else. Fault 18."""
    dice = random.Random(1)
    out_dir = tmp_path / "run"
    out_dir.mkdir()

    kills = [
        kill(out_dir, dice.randrange(1, 600), "write" if n % 2 else "commit") for n in range(KILLS)
    ]
    assert run(out_dir) == 0

    assert min(in_flight for in_flight, _ in kills) > 0
    assert sum(lost for _, lost in kills) > 0
    assert len(fragment_paths(out_dir / "wandb", RUN_ID)) == KILLS + 1
    assert written_history(out_dir) == expected_history(mixed_journal(COUNT))
    assert position(out_dir) == COUNT


def run(out_dir: Path, *kill_at: str) -> int:
    command = [sys.executable, "-m", f"{__package__}.run_sink", str(out_dir), str(COUNT)]
    return subprocess.run([*command, *kill_at], timeout=60, check=False).returncode


def kill(out_dir: Path, rows: int, point: str) -> tuple[int, int]:
    """Let a sink process kill itself.

    Returns how many rows it had sent that no position named, and how many of
    all that it had sent are in no file now.
    """
    assert run(out_dir, str(rows), point) == -signal.SIGKILL
    written: int = json.loads((out_dir / "written.json").read_text())
    sent = {row for row in steps(expected_history(mixed_journal(COUNT))) if row < written}
    return written - position(out_dir), len(sent - set(steps(written_history(out_dir))))


def position(out_dir: Path) -> int:
    cursor = out_dir / "cursor.json"
    return int(json.loads(cursor.read_text())[0]) if cursor.exists() else 0
