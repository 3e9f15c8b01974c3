"""Which rows a run in offline fragments writes, and when it begins a fragment: without wandb."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from telemetry.sinks.base import SinkContext
from telemetry.sinks.wandb import client, wandb_file
from telemetry.sinks.wandb.local import LocalRun, Spot
from telemetry.sinks.wandb.run_status import Ending
from telemetry.sinks.wandb.selection import Selected

from .conftest import RUN_ID, ManualClock
from .test_wandb_file import framed, history


class FileClient:
    """A wandb run that writes its records to the file at once."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.file.parent.mkdir(parents=True)
        self._payloads: list[bytes] = []

    def send(self, row: int, values: Any) -> None:
        self._write(history(row))

    def update_config(self, config: Any) -> None:
        self._write(_record())

    def update_summary(self, summary: Any) -> None:
        self._write(_record())

    def alert(self, alert: Any) -> None:
        self._write(_record())

    def add_tag(self, tag: str) -> None:
        self._write(_record())

    def mark_preempting(self) -> None:
        self._write(_record())

    def finish(self, code: int) -> None:
        last = _record()
        last.exit.exit_code = code
        self._write(last)

    def _write(self, record: Any) -> None:
        self._payloads.append(record.SerializeToString())
        self.file.write_bytes(framed(self._payloads)[0])


def _record() -> Any:
    from wandb.proto.wandb_internal_pb2 import Record

    return Record(num=1)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[FileClient]:
    """The fragments that were begun."""
    begun: list[FileClient] = []

    def start(context: Any, mode: str, directory: Path, bare_for: str = "") -> FileClient:
        name = f"offline-run-20260102_00000{len(begun)}-{RUN_ID}"
        begun.append(FileClient(directory / "wandb" / name / f"run-{RUN_ID}.wandb"))
        return begun[-1]

    monkeypatch.setattr(client, "start", start)
    return begun


def write(context: SinkContext, rows: Iterable[int], code: int | None = None) -> None:
    """Write the fragment of an earlier process; code is that of its end, None if it was killed."""
    place = context.out_dir / "wandb" / f"offline-run-20260101_000000-{RUN_ID}"
    earlier = FileClient(place / f"run-{RUN_ID}.wandb")
    for row in rows:
        earlier.send(row, {})
    if code is not None:
        earlier.finish(code)


def rows_in(begun: list[FileClient]) -> list[list[int]]:
    return [[int(row["_step"]) for row in wandb_file.history_rows(one.file)] for one in begun]


def carried(run: LocalRun, rows: Iterable[int]) -> None:
    for row in rows:
        run.take(row, Selected(history={"x": row}))


@pytest.mark.parametrize("spot", [0, 3, 5])
def test_a_run_goes_on_with_the_row_behind_the_last_one_in_its_files(
    context: SinkContext, clock: ManualClock, started: list[FileClient], spot: int
) -> None:
    """Not with that row again, and not one later; wherever the cursor stood."""
    write(context, range(5))
    run = LocalRun(context, ".", clock, clock.pause)
    run.open(Spot(), None, 0)
    carried(run, range(spot))
    part = run.commit(Spot(spot))
    run = LocalRun(context, ".", clock, clock.pause)
    run.open(Spot(), part, 0)

    carried(run, range(spot, 8))
    part = run.finish(Spot(8), Ending("finished", 0))

    assert rows_in(started) == [[5, 6, 7]]
    assert part.ledger.count == 8 and part.spot.row == 8


def test_a_run_that_was_finished_already_is_not_begun_again(
    context: SinkContext, clock: ManualClock, started: list[FileClient]
) -> None:
    """The process died between its finish and its commit: nothing is missing in the files."""
    write(context, range(5), code=3)
    run = LocalRun(context, ".", clock, clock.pause)
    run.open(Spot(), None, 0)
    carried(run, range(5))

    run.finish(Spot(5), Ending("failed", 3))

    assert started == []


@pytest.mark.parametrize("code", [None, 0])
def test_a_run_that_ended_otherwise_is_finished_once_more(
    context: SinkContext, clock: ManualClock, started: list[FileClient], code: int | None
) -> None:
    """Killed before its end, or reopened and failed since: W&B shows the last exit code."""
    write(context, range(5), code=code)
    run = LocalRun(context, ".", clock, clock.pause)
    run.open(Spot(), None, 0)
    carried(run, range(5))

    run.finish(Spot(5), Ending("failed", 3))

    assert [wandb_file.exit_code(one.file) for one in started] == [3]
