"""Check: compares the files of an offline run with the rows that its cursor covers.

In: the directory of a run.
Out: a sentence about missing rows, or an empty text.
Never: changes anything, or asks a server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from telemetry.json_files import read_json
from telemetry.sinks.skips import Skips, skips_path
from telemetry.sinks.wandb import offline
from telemetry.sinks.wandb.local import part_from


def missing_rows(run_dir: Path) -> str:
    """Return a sentence about rows that are missing in the `.wandb` files of a run.

    Empty if none are missing, if the run is not an offline one, or if its files were
    moved away because a server has the rows.

    Raises:
        ImportError: wandb, which the files are read with, is not installed.
        OSError: the files can't be read.
    """
    cursor = read_json(run_dir / "cursors" / "wandb.json") or {}
    state: dict[str, Any] = cursor.get("state") or {}
    if state.get("mode") != "offline" or state.get("local") is None:
        return ""
    try:
        part = part_from(state["local"])
    except ValueError:
        return "the wandb sink's cursor is damaged"
    assert part is not None
    directory, run_id = run_dir / part.place / "wandb", str(cursor.get("run_id", run_dir.name))
    if offline.superseded_count(directory, run_id) != part.superseded:
        return ""
    skipped = Skips(skips_path(run_dir / "cursors", "wandb"))
    fragments = offline.read_fragments(directory, run_id)
    rows = [row for row in offline.rows_of(fragments) if row not in skipped]
    # Only rows before the cursor count: a sink may have written more behind it.
    held = offline.Ledger().plus(row for row in rows if row < part.spot.row)
    if held == part.ledger:
        return ""
    if held.count != part.ledger.count:
        return f"{held.count:,} of {part.ledger.count:,} rows are in {directory}"
    return f"the {held.count:,} rows in {directory} are not those that were written"
