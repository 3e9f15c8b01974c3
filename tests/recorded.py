"""Reading back what a run has recorded."""

from __future__ import annotations

from pathlib import Path

from telemetry.journal.reader import JournalReader, Row


def rows_of(run_dir: Path) -> list[Row]:
    """All rows of a run; damage fails the test."""
    rows: list[Row] = []
    with JournalReader(run_dir / "journal") as reader:
        while not (batch := reader.read()).is_end or batch.rows:
            assert batch.damage == []
            rows += batch.rows
    return rows
