"""Journals on disk for the screens: runs that a sidecar would have written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.events import Event, MetricsLogged, RunStarted, encode_event, join_events
from shared.ids import StreamId
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json

START_S = 1_700_000_000


def write_rows(
    run_dir: Path,
    events: Sequence[Event],
    source: str = "rank0",
    session: str = "s1",
    *,
    start_s: float = START_S,
    seq: int = 0,
) -> None:
    """Append events to a run's journal, a second after one another."""
    with JournalWriter(run_dir / "journal") as writer:
        packed = [
            encode_event(event, int((start_s + i) * 1e9), i * 10**9)
            for i, event in enumerate(events)
        ]
        stream = StreamId(run_dir.name, session, source)
        writer.append(stream, seq, len(packed), join_events(packed))
        writer.sync()


def write_run_file(run_dir: Path, **fields: object) -> None:
    values = {"run_id": run_dir.name, "state": "running", "name": run_dir.name, "project": "p"}
    write_json(run_dir / "run.json", values | fields)


def training(steps: int, first: int = 1) -> list[Event]:
    """A start and its steps: the loss falls from 10 by 0.01 a step."""
    return [
        RunStarted(project="p", name="n", host="node1", config={"total_steps": 1000}),
        *(
            MetricsLogged(
                kind="train",
                step=step,
                values={
                    "train/loss": 10 - step / 100,
                    "train/training_stage": "warmup",
                    "train/tokens_per_second": 5000.0,
                },
            )
            for step in range(first, first + steps)
        ),
    ]


def samples(count: int, **more: float) -> list[Event]:
    """Hardware samples; the processor goes from 0 % on by 1 % a sample."""
    return [
        MetricsLogged(
            kind="hardware",
            values={
                "cpu_percent": float(i),
                "memory_percent": 50.0,
                "memory/used_bytes": 2**33,
                "memory/available_bytes": 2**33,
                **more,
            },
        )
        for i in range(count)
    ]
