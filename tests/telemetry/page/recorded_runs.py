"""Runs on disk for the page: what a trainer and a sampler record, and what a hostile one would."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.events import (
    AlertChanged,
    Event,
    Gap,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
    encode_event,
    join_events,
)
from shared.ids import StreamId
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json

START_S = 1_790_000_000
STEP_S = 0.5
RECORD = 50
SITES = ("attn.qkv", "attn.out", "ffn.up", "ffn.down")
HOSTILE = (
    '<b>b</b><script>window.hostile=1</script>"><img src=x onerror="window.hostile=2">\u202etxt.exe'
)


def write_run(
    data_dir: Path,
    run_id: str,
    *,
    steps: int = 300,
    name: str = "base",
    seed: int = 0,
    is_ended: bool = True,
    restart_at: int = 0,
    hostile: str = "",
    start_s: float = START_S,
) -> Path:
    """Write the journal and run.json of a run; return its directory."""
    run_dir = data_dir / "runs" / run_id
    shown = hostile or name
    start = RunStarted(
        project="ternary", name=shown, host="node1", tags=[hostile or "tiny", "b1.58"],
        notes=hostile, config={"total_steps": steps, "learning_rate": 3e-3, "note": hostile},
    )  # fmt: skip
    back = max(1, restart_at - steps // 10)
    with JournalWriter(run_dir / "journal") as writer:
        first = [start, *training(1, restart_at or steps, seed, hostile)]
        if restart_at:
            append(writer, run_dir, first, "s1", start_s)
            again = [
                RunStarted(project="ternary", name=shown, host="node1", resumed_from_step=back - 1),
                Gap(count=7, by_kind={"metrics": 7}, reason="the trainer was killed"),
                *training(back, steps, seed + 1, hostile),
            ]
            append(writer, run_dir, again + end(is_ended), "s2", start_s + restart_at * STEP_S + 60)
        else:
            append(writer, run_dir, first + end(is_ended), "s1", start_s)
        seconds = int(steps * STEP_S) + (60 if restart_at else 0)
        append(writer, run_dir, hardware(seconds, seed), "h1", start_s, "hardware:node1", 1.0)
    write_json(
        run_dir / "run.json",
        {
            "run_id": run_id, "state": "ended" if is_ended else "running", "name": shown,
            "project": "ternary", "host": "node1", "tags": [hostile or "tiny", "b1.58"],
            "notes": hostile, "started_wall_ns": int(start_s * 1e9), "is_introduced": True,
            "config": start.config, **({"status": "finished"} if is_ended else {}),
        },
    )  # fmt: skip
    return run_dir


def end(is_ended: bool) -> list[Event]:
    return [RunFinished(status="finished", exit_code=0)] if is_ended else []


def append(
    writer: JournalWriter,
    run_dir: Path,
    events: Sequence[Event],
    session: str,
    start_s: float,
    source: str = "rank0",
    step_s: float = STEP_S,
    seq: int = 0,
) -> None:
    """Append events of one session, at the times of their steps."""
    stream = StreamId(run_dir.name, session, source)
    moment = start_s
    packed = []
    for event in events:
        if isinstance(event, MetricsLogged) and event.kind in ("train", "hardware"):
            moment += step_s
        packed.append(encode_event(event, int(moment * 1e9), int((moment - start_s) * 1e9)))
    for at in range(0, len(packed), RECORD):
        part = packed[at : at + RECORD]
        writer.append(stream, seq + at, len(part), join_events(part))
    writer.sync()


def training(first: int, last: int, seed: int, hostile: str = "") -> Iterator[Event]:
    """The events of the steps of a run of three stages, with its diagnostics by layer."""
    rng = random.Random(seed)
    for step in range(first, last + 1):
        share = step / last
        stage = "warmup" if share < 0.2 else "partial_ternary" if share < 0.5 else "full_ternary"
        values: dict[str, float | str] = {
            "train/loss": 2.5 + 5 * math.exp(-6 * share) + rng.gauss(0, 0.05),
            "train/grad_norm": 1 + rng.random(),
            "train/learning_rate": 3e-3 * min(1, step / 30) * (1 - 0.9 * share),
            "train/training_stage": stage,
            "train/tokens_per_second": 5000 + 200 * rng.random(),
            "train/step_seconds": 0.4 + 0.1 * rng.random(),
        }
        if step == first + 40:
            values["train/loss"] = math.nan
        yield MetricsLogged(kind="train", step=step, values=values)
        if step % 10 == 0:
            yield from quantization(step, share, rng)
        if step % 50 == 0:
            yield MetricsLogged(
                kind="val", step=step, values={"val/loss": 2.6 + 5 * math.exp(-6 * share)}
            )
            yield MessageLogged(level="info", text=hostile or f"checkpoint at step {step}")
        if step == first + 60:
            yield AlertChanged(
                name="loss_spike", subject="train/loss", severity="warning",
                text=hostile or "the loss rose to 3 times its mean",
            )  # fmt: skip
        if step == first + 80:
            yield AlertChanged(name="loss_spike", subject="train/loss", is_active=False)


def quantization(step: int, share: float, rng: random.Random) -> Iterator[Event]:
    values: dict[str, float | str] = {"quant/zero_ratio": 0.3 + 0.1 * share}
    for layer in range(4):
        for site in SITES:
            place = f"quant/layers.{layer}.{site}"
            values[f"{place}/zero_ratio"] = 0.3 + 0.05 * layer + 0.1 * share
            values[f"{place}/flip_ratio"] = 0.05 * (1 - share) * (1 + rng.random())
            values[f"{place}/activation_sqnr_db"] = 25 + 5 * share - layer + rng.random()
            values[f"{place}/scale"] = 0.02 * (1 + layer) * (1 + 0.1 * share)
    yield MetricsLogged(kind="quant", step=step, values=values)
    edges = [-3 + 0.25 * i for i in range(25)]
    width = 1 + share
    counts = [1000 * math.exp(-(((edge + 0.125) / width) ** 2)) for edge in edges[:-1]]
    yield HistogramLogged(kind="quant", step=step, name="weights/all", edges=edges, counts=counts)


def hardware(seconds: int, seed: int) -> Iterator[Event]:
    rng = random.Random(seed)
    for second in range(seconds):
        yield MetricsLogged(
            kind="hardware",
            values={
                "cpu_percent": 60 + 20 * math.sin(second / 20) + rng.random(),
                "memory_percent": 40.0 + second / max(seconds, 1),
                "memory/used_bytes": 2.0**33,
                "gpu/0/uuid": "GPU-1", "gpu/0/name": "NVIDIA H100",
                "gpu/0/utilization_percent": 90 + rng.random() * 5,
                "gpu/0/memory_used_bytes": 4e10,
                "gpu/0/temperature_celsius": 60 + 5 * math.sin(second / 30),
                "gpu/0/power_watts": 500 + 50 * rng.random(),
            },
        )  # fmt: skip
