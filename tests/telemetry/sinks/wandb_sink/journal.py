"""A journal that has every kind of row, and what the policy makes of it.

In: a number of rows, or no end.
Out: the rows; the wandb rows that must come of them, in the form in which
`wandb_contents.history_rows` tells of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shared.events import ConfigUpdated, Gap, HistogramLogged, MessageLogged, RunFinished
from telemetry.journal.rows import Row
from telemetry.sinks.wandb.offline import read_fragments
from telemetry.sinks.wandb.selection import Histogram, Policy, Selected
from tests.fake_wandb import FakeRun
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.wandb_contents import history_rows

from .surroundings import RUN_ID


def mixed_journal(count: int) -> list[Row]:
    """count rows of two ranks, two hosts and the sidecar; the last ends the run."""
    made = _begun()
    while len(made.rows) < count - 1:
        _append_some(made, len(made.rows))
    del made.rows[count - 1 :]
    made.append(RunFinished(status="finished", exit_code=0, summary={"val/best": 1.5}))
    return made.rows


def endless_journal() -> Iterator[Row]:
    """The rows of a run that goes on: of every `mixed_journal` all but the end."""
    made, told = _begun(), 0
    while True:
        yield from made.rows[told:]
        told = len(made.rows)
        _append_some(made, told)


def _begun() -> RowMaker:
    made = RowMaker()
    made.start(config={"lr": 0.1}, gpu_uuids=["GPU-a"])
    made.append(ConfigUpdated(config={"parameters": 2**40, "dims": [1, 2]}))
    return made


def _append_some(made: RowMaker, n: int) -> None:
    made.metrics(n, {"train/loss": 1 / n, "train/training_stage": "warmup", "odd": math.nan})
    made.hardware({"cpu_percent": n % 100, "gpu/0/uuid": "GPU-a", "gpu/0/power_watts": n / 7})
    made.hardware({"cpu_percent": 50, "memory_percent": 1.5}, host="node2")
    made.metrics(max(0, n - 1000), {"rank/1/step_seconds": 0.1}, "rank1", "s-rank1")
    if n % 50 < 5:
        made.append(MessageLogged(level="warning", text=f"at {n}"))
        edges = [0.0, 0.5, float(n)]
        made.append(
            HistogramLogged(kind="quant", step=n, name="quant/w", edges=edges, counts=[n, 2])
        )
    if n % 200 < 5:
        made.append(Gap(count=3, reason="test"), source="sidecar", session="sc")


def select(rows: Iterable[Row], policy: Policy | None = None) -> list[tuple[int, Selected]]:
    """What the policy selects, row by row."""
    policy, found = policy or Policy(), []
    for row in rows:
        policy, selected = policy.after(row)
        found.append((row.row, selected))
    return found


def expected_history(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The history rows that a journal must become."""
    found = []
    for row, selected in select(rows):
        if selected.history is not None:
            flat: dict[str, Any] = {"_step": row}
            for name, value in selected.history.items():
                if isinstance(value, Histogram):
                    flat |= {
                        f"{name}._type": "histogram",
                        f"{name}.values": value.counts,
                        f"{name}.bins": value.edges,
                    }
                else:
                    flat[name] = value
            found.append(_comparable(flat))
    return found


def written_history(out_dir: Path, run_id: str = RUN_ID) -> list[dict[str, Any]]:
    """The history rows in all fragments of a run, in their order."""
    fragments = read_fragments(out_dir / "wandb", run_id)
    return [_comparable(row) for f in fragments for row in history_rows(f.path)]


def server_history(run: FakeRun) -> list[dict[str, Any]]:
    """The history rows that a server has, by line, in the form of `expected_history`."""
    return [_comparable(_flat(row)) for row in run.rows()]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": held for inner, held in value.items()}
        else:
            flat[name] = value
    return flat


def steps(history: Sequence[dict[str, Any]]) -> list[int]:
    return [row["_step"] for row in history]


def _comparable(values: dict[str, Any]) -> dict[str, Any]:
    """Without what wandb-core stamps on its own, and with a NaN that equals itself."""
    return {
        name: "NaN" if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
        if name != "_runtime"
    }
