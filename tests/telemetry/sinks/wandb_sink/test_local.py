"""A run in offline fragments that is read back before it counts as done: without wandb."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from telemetry.sinks.base import SinkContext, SinkUnavailable
from telemetry.sinks.wandb.local import LocalRun, Spot
from telemetry.sinks.wandb.run_status import Ending
from telemetry.sinks.wandb.selection import Selected

from .surroundings import RUN_ID, PausingClock
from .test_wandb_file import framed, history

FINISHED = Ending("finished", 0)


def fragment(context: SinkContext) -> Path:
    return context.out_dir / "wandb" / f"offline-run-20260101_000000-{RUN_ID}/run-{RUN_ID}.wandb"


def write_ended(path: Path, rows: Iterable[int]) -> None:
    """A fragment with these rows, of a run that was finished."""
    from wandb.proto.wandb_internal_pb2 import Record

    last: Any = Record()
    last.exit.exit_code = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [history(row) for row in rows] + [last]
    path.write_bytes(framed([record.SerializeToString() for record in records])[0])


def taken(context: SinkContext, clock: PausingClock) -> LocalRun:
    """A run whose five rows were all found in its files, and counted."""
    run = LocalRun(context, ".", clock, clock.pause)
    run.open(Spot(), None, 0)
    for row in range(5):
        run.take(row, Selected(history={"x": row}))
    return run


def test_a_run_that_is_whole_in_its_files_is_done(
    context: SinkContext, clock: PausingClock
) -> None:
    write_ended(fragment(context), range(5))

    part = taken(context, clock).finish(Spot(5), FINISHED)

    assert part.spot.row == 5 and part.ledger.count == 5


@pytest.mark.parametrize(
    "rows", [[0, 1, 3, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2, 2, 3, 4], [0, 1, 2, 5, 4]]
)
def test_a_row_that_goes_missing_before_the_end_is_noticed(
    context: SinkContext, clock: PausingClock, rows: list[int]
) -> None:
    """It was in the file once. What a disk, or somebody's hand, has made of it since is read
    back before the run counts as done."""
    write_ended(fragment(context), range(5))
    run = taken(context, clock)
    write_ended(fragment(context), rows)

    with pytest.raises(SinkUnavailable, match="not the same"):
        run.finish(Spot(5), FINISHED)


def test_a_fragment_that_is_taken_away_before_the_end_is_noticed(
    context: SinkContext, clock: PausingClock
) -> None:
    write_ended(fragment(context), [])
    last = fragment(context).parent.with_name(f"offline-run-20260101_000001-{RUN_ID}")
    write_ended(last / fragment(context).name, range(5))
    run = taken(context, clock)
    (last / fragment(context).name).unlink()

    with pytest.raises(SinkUnavailable, match="not the same"):
        run.finish(Spot(5), FINISHED)
