"""Check: compares the files of an offline run with the rows that its cursor covers.

In: the directory of a run.
Out: a sentence about missing rows, or an empty text.
Never: changes anything, or asks a server.
"""

from __future__ import annotations

from pathlib import Path

from shared.wandb_variables import OFFLINE
from telemetry.run_dir import CursorFile, RunDir, read
from telemetry.sinks.skips import Skips
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
    place = RunDir(run_dir)
    cursor = read(place.cursor("wandb"), CursorFile) or CursorFile()
    state = cursor.state
    if state.get("mode") != OFFLINE or state.get("local") is None:
        return ""
    try:
        part = part_from(state["local"])
    except ValueError:
        return "the wandb sink's cursor is damaged"
    assert part is not None
    directory, run_id = RunDir(run_dir / part.place).wandb, cursor.run_id or run_dir.name
    if offline.superseded_count(directory, run_id) != part.superseded:
        return ""
    skipped = Skips(place.skips("wandb"))
    fragments = offline.read_fragments(directory, run_id)
    rows = [row for row in offline.rows_of(fragments) if row not in skipped]
    # Only rows before the cursor count: a sink may have written more behind it.
    held = offline.Ledger().plus(row for row in rows if row < part.spot.row)
    if held == part.ledger:
        return ""
    if held.count != part.ledger.count:
        return f"{held.count:,} of {part.ledger.count:,} rows are in {directory}"
    return f"the {held.count:,} rows in {directory} are not those that were written"
