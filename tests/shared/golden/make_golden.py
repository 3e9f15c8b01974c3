"""Writes the golden segment. Run once; what it wrote must decode for ever.

    python -m tests.shared.golden.make_golden

Never run it to make a failing test pass: journals like this one are on disks.
"""

from __future__ import annotations

import math
from pathlib import Path

from shared.events import (
    ConfigUpdated,
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
from shared.record import (
    EVENTS,
    STREAMS,
    StreamEntry,
    encode_record,
    encode_segment_header,
    encode_table,
)

PATH = Path(__file__).with_name("00000000000000000042.seg")
UUID = bytes(range(16))
FIRST_ROW = 42
RANK0 = StreamEntry("golden-run", "0123456789abcdef", "rank0", 6)
HARDWARE = StreamEntry("golden-run", "fedcba9876543210", "hardware:node-1", -1)

EVENTS_OF_RANK0: list[Event] = [
    RunStarted(
        project="bitnet-qdyt-v2",
        name="small",
        tags=["a", "ü"],
        notes="notes",
        wandb_mode="offline",
        group="g",
        config={"lr": 3e-4, "nested": {"deep": [1, None, True, "x"]}, "big": 2**63 - 1},
        rank=0,
        world_size=2,
        host="node-1",
        pid=1234,
        process_start_ns=1_700_000_000_000_000_000,
        gpu_uuids=["GPU-1"],
        resumed_from_step=100,
    ),
    ConfigUpdated(config={"parameters_total": 110_000_000}),
    MetricsLogged(
        kind="train",
        step=101,
        values={
            "train/loss": 2.5,
            "nan": math.nan,
            "inf": -math.inf,
            "int": -(2**63),
            "flag": True,
            "train/training_stage": "warmup",
        },
    ),
    HistogramLogged(kind="quant", step=101, name="w", edges=[-1.0, 0.0, 1.0], counts=[3.0, 4.0]),
    MessageLogged(level="warning", text="stage: warmup → partial_ternary"),
    Gap(count=3, by_kind={"train": 2, "hardware": 1}, reason="queue full", unknown_ms=12.5),
    RunFinished(status="finished", exit_code=0, summary={"val/loss": 1.25}),
]
EVENTS_OF_HARDWARE: list[Event] = [
    MetricsLogged(kind="hardware", values={"gpu/0/power_watts": 250.0}),
    MetricsLogged(kind="hardware", values={}),
]


def wall_ns(row: int) -> int:
    return 1_700_000_000_000_000_000 + row


def segment() -> bytes:
    """The bytes, as they were written when this format was new."""
    return b"".join(
        (
            encode_segment_header(UUID, FIRST_ROW, {3: RANK0}),
            _record(3, FIRST_ROW, 7, EVENTS_OF_RANK0[:5]),
            encode_record(STREAMS, 4, FIRST_ROW + 5, 0, 0, encode_table({4: HARDWARE})),
            _record(4, FIRST_ROW + 5, 0, EVENTS_OF_HARDWARE),
            _record(3, FIRST_ROW + 7, 12, EVENTS_OF_RANK0[5:]),
        )
    )


def _record(stream: int, row: int, base_seq: int, events: list[Event]) -> bytes:
    packed = [encode_event(event, wall_ns(row + i), row + i) for i, event in enumerate(events)]
    return encode_record(EVENTS, stream, row, base_seq, len(events), join_events(packed))


if __name__ == "__main__":
    PATH.write_bytes(segment())
