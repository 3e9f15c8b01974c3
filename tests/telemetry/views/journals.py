"""Journals for the tests of views: events of several sessions and sources, in one order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from shared.events import Event, MetricsLogged, RunFinished, RunStarted, encode_event, join_events
from shared.ids import StreamId
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json

START_S = 1_700_000_000


class Said(NamedTuple):
    """Events that one session of a source sent together; at_s: time of the first, 1 s apart."""

    events: list[Event]
    at_s: float = 0.0
    source: str = "rank0"
    session: str = "s1"
    is_late: bool = False
    apart_s: float = 1.0


def write_journal(run_dir: Path, said: Iterable[Said], segment_max_bytes: int = 1 << 26) -> Path:
    """Append frames to the journal of a run, each a record of its own; returns the run's place."""
    with JournalWriter(run_dir / "journal", segment_max_bytes) as writer:
        for each in said:
            stream = StreamId(run_dir.name, each.session, each.source)
            packed = []
            for i, event in enumerate(each.events):
                at_s = each.at_s + i * each.apart_s
                packed.append(
                    encode_event(event, int((START_S + at_s) * 1e9), int(max(0.0, at_s) * 1e9))
                )
            seq = writer.appended_seq(stream) + 1
            writer.append(stream, seq, len(packed), join_events(packed), is_late=each.is_late)
            writer.sync()
    return run_dir


def write_run_file(run_dir: Path, **fields: object) -> None:
    values = {"run_id": run_dir.name, "state": "ended", "name": "n", "project": "p"}
    write_json(run_dir / "run.json", values | fields)


def steps(first: int, last: int, **values: float) -> list[Event]:
    """Training rows of steps first to last; the loss is 10 - step / 100."""
    return [
        MetricsLogged(kind="train", step=s, values={"train/loss": 10 - s / 100, **values})
        for s in range(first, last + 1)
    ]


def started(resumed_from_step: int | None = None) -> RunStarted:
    return RunStarted(project="p", name="n", host="node1", resumed_from_step=resumed_from_step)


def finished(status: str = "finished") -> RunFinished:
    return RunFinished(status=status, exit_code=0 if status == "finished" else 1)
