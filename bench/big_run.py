"""A recorded run of many events, for measurements of what reads runs.

In: a directory, and a number of events.
Out: a run there: three sessions of rank 0 with training, validation and quantization, a
second rank, and the hardware of one host.
Never: starts a sidecar; the journal is written by the ordinary writer.

    python -m bench.big_run DIRECTORY --events 1000000
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

from shared.events import (
    Event,
    MetricsLogged,
    RunFinished,
    RunStarted,
    encode_event,
    join_events,
)
from shared.ids import StreamId
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json

START_S = 1_700_000_000
FRAME = 50
SESSIONS = 3
GPU = "GPU-00000000-0000-0000-0000-000000000000"


def write_run(run_dir: Path, events: int) -> int:
    """Write a run of about so many events, and return how many it has."""
    run_id, written = run_dir.name, 0
    seqs: dict[StreamId, int] = {}
    with JournalWriter(run_dir / "journal") as writer:
        for source, session, part in _frames(events):
            stream = StreamId(run_id, session, source)
            packed = [encode_event(e, int((START_S + s) * 1e9), int(s * 1e9)) for s, e in part]
            seq = seqs.get(stream, 0)
            writer.append(stream, seq, len(packed), join_events(packed))
            seqs[stream] = seq + len(packed)
            written += len(packed)
            if writer.pending_bytes > 8 << 20:
                writer.sync()
        writer.sync()
    values = {"run_id": run_id, "state": "ended", "name": run_id, "project": "bench"}
    write_json(run_dir / "run.json", values | {"status": "finished", "exit_code": 0, "endings": 1})
    return written


def _frames(events: int) -> Iterator[tuple[str, str, list[tuple[float, Event]]]]:
    """Yield source, session, and events with their times in s."""
    # Of 100 events 60 are training, 35 of the second rank, 4 quantization, 1 hardware.
    steps = events * 6 // 10
    step, now_s = 0, 0.0
    for number in range(SESSIONS):
        session = f"s{number}"
        resumed = None if number == 0 else step
        for rank in (0, 1):
            start = RunStarted(
                project="bench", name="big", rank=rank, world_size=2, host="node1",
                gpu_uuids=[GPU], resumed_from_step=resumed,
            )  # fmt: skip
            yield f"rank{rank}", session, [(now_s, start)]
        end = steps * (number + 1) // SESSIONS
        while step < end:
            taken = range(step + 1, min(step + FRAME, end) + 1)
            times = [(now_s + 0.1 * i, s) for i, s in enumerate(taken)]
            yield "rank0", session, [(at, _training(s)) for at, s in times]
            yield "rank1", session, [(at, _rank(s)) for at, s in times[: len(times) * 35 // 60]]
            yield "rank0", session, [(at, _quantization(s)) for at, s in times[::15]]
            yield "hardware:node1", "h", [(now_s, _hardware(now_s))]
            step, now_s = taken[-1], now_s + 0.1 * FRAME
        # The last steps are done again by the next session.
        if number < SESSIONS - 1:
            step, now_s = step - 500, now_s + 60.0
    yield "rank0", session, [(now_s, RunFinished(status="finished", exit_code=0))]


def _training(step: int) -> MetricsLogged:
    loss = 2 + 8 * math.exp(-step / 1e5) + 0.1 * math.sin(step)
    values: dict[str, float | int | bool | str] = {
        "train/loss": loss,
        "train/grad_norm": 1 + 0.3 * math.sin(step / 7),
        "train/learning_rate": 1e-3 * math.exp(-step / 3e5),
        "train/training_stage": "warmup" if step < 10_000 else "full_ternary",
        "train/global_step": step,
        "train/tokens_per_second": 5000.0 + step % 13,
        "train/step_seconds": 0.1,
        "train/epoch": step / 1e4,
    }
    return MetricsLogged(kind="train", step=step, values=values)


def _rank(step: int) -> MetricsLogged:
    values: dict[str, float | int | bool | str] = {
        "rank/1/step_seconds": 0.1,
        "rank/1/work_seconds": 0.05,
    }
    return MetricsLogged(kind="train", step=step, values=values)


def _quantization(step: int) -> MetricsLogged:
    names = ("weight_sqnr_db", "zero_ratio", "plus_ratio", "minus_ratio", "flip_rate_per_step")
    values: dict[str, float | int | bool | str] = {
        f"quant/layers.{layer}.attention/{name}": step % 97 / 97 + layer
        for layer in range(6)
        for name in names
    }
    return MetricsLogged(kind="quant", step=step, values=values)


def _hardware(now_s: float) -> MetricsLogged:
    values: dict[str, float | int | bool | str] = {"cpu_percent": 40.0, "memory_percent": 20.0}
    values |= {f"cpu/{n}/percent": 10.0 + n for n in range(16)}
    values |= {"gpu/0/uuid": GPU, "gpu/0/utilization_percent": 90.0, "gpu/0/energy_joules": now_s}
    return MetricsLogged(kind="hardware", values=values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--events", type=int, default=1_000_000)
    args = parser.parse_args()
    print(f"{write_run(args.directory, args.events):,} events in {args.directory}")


if __name__ == "__main__":
    main()
