"""Parquet in tests: journals of many kinds of events, and a reading of files that is not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from shared.events import (
    AlertChanged,
    Gap,
    HistogramLogged,
    MessageLogged,
    RunFinished,
)
from telemetry.run_dir import RunFile
from telemetry.sinks.base import SinkContext
from tests.telemetry.sinks.helpers_rows import RowMaker

JOURNAL = "ab" * 16


def mixed(steps: int) -> RowMaker:
    """A run with every kind of event, and values of every type."""
    made = RowMaker()
    made.start(config={"lr": 3e-4, "odd": float("inf")})
    for step in range(steps):
        made.metrics(step, {"train/loss": 10 - step / 100, "train/tokens": step * 1000})
        made.metrics(step, {"step_seconds": 0.5}, "rank1", "s2", kind="custom")
        made.hardware({"cpu_percent": 50.0, "gpu/0/uuid": "GPU-1", "gpu/0/utilization_percent": 9})
        if step % 10 == 0:
            made.metrics(step, {"train/training_stage": "warmup", "is_new": True})
            made.append(
                HistogramLogged(kind="quant", step=step, name="w", edges=[0.0, 1.0], counts=[3.0])
            )
            made.append(MessageLogged(level="info", text=f"at {step}"))
    made.append(Gap(count=3, by_kind={"train": 3}, reason="queue full"))
    made.append(AlertChanged(name="loss_nan", subject="rank0", severity="error", text="t"))
    made.append(RunFinished(status="finished", exit_code=0))
    return made


def context(out_dir: Path, run_id: str = "r", **more: Any) -> SinkContext:
    return SinkContext(
        run_id, out_dir, RunFile(run_id=run_id, name="n"), {}, journal=JOURNAL, **more
    )


def files(out_dir: Path, run_id: str = "r") -> list[Path]:
    return sorted((out_dir / "parquet" / f"run={run_id}").glob("*.parquet"))


def read(out_dir: Path, columns: str = "*", where: str = "true") -> list[tuple[Any, ...]]:
    """Every line of all files, as another program would read them."""
    with duckdb.connect() as database:
        return database.execute(
            f"SELECT {columns} FROM read_parquet($files, hive_partitioning = true, "
            f"hive_types = {{'run': VARCHAR}}) WHERE {where} ORDER BY \"row\", name",
            {"files": str(out_dir / "parquet" / "*" / "*.parquet")},
        ).fetchall()
