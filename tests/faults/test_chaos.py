"""The chaos run, short and with a fixed seed; and its oracle, which has to see what is wrong."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.faults import chaos, oracle
from tests.faults.plant import Plant, Trainer
from tests.faults.trainer_process import RECORD, last_emitted, read_side_file
from tests.telemetry.waiting import wait_until

SECOND_NS = 1_000_000_000


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    """One that emitted ten events, a tenth of a second apart, and knew of five on disk."""
    side = tmp_path / "side"
    records = [RECORD.pack(n, SECOND_NS + n * SECOND_NS // 10, min(n, 5)) for n in range(10)]
    side.write_bytes(b"".join(records) + b"torn")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Trainer(0, "r", "rank0", side, 0, process, tmp_path, ended_by="exit")


def judged(trainer: Trainer, numbers: list[int], durable: int | None = None) -> chaos.Verdict:
    journals, verdict = oracle.Journals(), chaos.Verdict()
    journals.order[0] = numbers
    journals.durable[0] = len(numbers) + 1 if durable is None else durable
    chaos._judge_trainer(verdict, journals, trainer, [])
    verdict.faults += journals.faults
    return verdict


def test_the_oracle_finds_nothing_wrong_where_nothing_is(trainer: Trainer) -> None:
    """A record that a kill has torn is no event."""
    verdict = judged(trainer, list(range(10)))

    assert (verdict.emitted, verdict.lost, verdict.invented, verdict.faults) == (10, 0, 0, [])
    assert last_emitted(trainer.side) == read_side_file(trainer.side)[-1]


@pytest.mark.parametrize("numbers", [[0, 1, 2, 4, 5, 6, 7, 8, 9], list(range(9)), []])
def test_the_oracle_sees_what_is_lost(trainer: Trainer, numbers: list[int]) -> None:
    """In the middle, at the end, or all of it: who ended in order has lost nothing."""
    verdict = judged(trainer, numbers)

    assert verdict.lost == 10 - len(numbers) and verdict.faults


def test_the_oracle_sees_what_is_invented_or_out_of_order(trainer: Trainer) -> None:
    """Nobody ever said 10; 4 comes after 5."""
    verdict = judged(trainer, [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10])

    assert verdict.invented == 1 and any("order" in fault for fault in verdict.faults)


def test_the_oracle_sees_an_acknowledgement_that_was_a_lie(trainer: Trainer) -> None:
    """The emitter was told of five events on disk, and three are there."""
    trainer.ended_by, trainer.ended_ns = "kill", 2 * SECOND_NS

    assert any("acknowledged" in f for f in judged(trainer, [0, 1], durable=3).faults)


@pytest.mark.parametrize(("after_ns", "is_fault"), [(SECOND_NS // 10, False), (SECOND_NS, True)])
def test_a_killed_trainer_may_lose_its_last_moment_and_no_more(
    trainer: Trainer, after_ns: int, is_fault: bool
) -> None:
    """Row 2 of the fault catalogue: what it costs is told by its age, frozen time left out."""
    last = SECOND_NS + 9 * SECOND_NS // 10
    trainer.ended_by, trainer.ended_ns = "kill", last + after_ns + SECOND_NS
    trainer.stops = [[last, last + SECOND_NS]]

    verdict = judged(trainer, list(range(9)))

    assert [loss.age_ms for loss in verdict.losses] == [after_ns / 1e6]
    assert bool(verdict.faults) is is_fault


@pytest.mark.parametrize(
    ("minutes", "least_kills"),
    [
        (0.1, 3),
        pytest.param(0.5, 10, marks=[pytest.mark.faults, pytest.mark.timeout(400)]),
    ],
)
def test_chaos_loses_and_doubles_nothing(place: Path, minutes: float, least_kills: int) -> None:
    """Rows 1, 2, 17, 18, 22 and 36: everything killed and frozen at random, then counted."""
    console = Console(file=io.StringIO(), width=150)

    verdict, kills = chaos.run(place, chaos.Options(minutes=minutes, seed=7), console)

    assert verdict.faults == [] and verdict.emitted > 0
    assert len(kills) >= least_kills, "too little was killed"
    told = [kill.in_flight for kill in kills if kill.in_flight is not None]
    assert told.count(0) <= max(1, len(told) // 10), "too many kills hit nothing"
    print(console.file.getvalue(), file=sys.stderr)


@pytest.mark.parametrize(
    "seconds",
    [
        1.0,
        pytest.param(12.0, marks=[pytest.mark.faults, pytest.mark.timeout(500)]),
        pytest.param(60.0, marks=[pytest.mark.faults, pytest.mark.timeout(600)]),
    ],
)
def test_a_disk_that_stands_still_delays_acknowledgements_and_nothing_else(
    place: Path, seconds: float
) -> None:
    """Fault 37: two trainers at 200 events a second. The service lives and answers, acknowledges
    nothing meanwhile, and everything afterwards."""
    for name in ("data/runs", "spool"):
        (place / name).mkdir(parents=True)
    with Plant(place, 200.0) as plant:
        plant.start_sidecar()
        trainers = [plant.start_trainer("stalled", source, 0) for source in ("rank0", "rank1")]
        wait_until(lambda: all(acknowledged(trainer) > 50 for trainer in trainers), 60)
        service = plant.sidecar

        plant.stall_disk(chaos.NEVER_S)
        # What was in a sync when the disk stopped may still be told.
        wait_until(lambda: all(trainer.in_flight > 200 for trainer in trainers), 60)
        before, end_s = [acknowledged(trainer) for trainer in trainers], time.monotonic() + seconds
        wait_until(lambda: time.monotonic() > end_s, seconds + 60)
        during = [acknowledged(trainer) for trainer in trainers]
        plant.end_stall(everything=True)
        goal = [emitted(trainer) for trainer in trainers]
        wait_until(
            lambda: all(acknowledged(t) > g for t, g in zip(trainers, goal, strict=True)), 60
        )

        assert before == during
        assert service is not None and plant.sidecar == service, "the service has not lived"
        for trainer in trainers:
            plant.end_trainer(trainer, "finish" if trainer.source == "rank0" else "exit")
        assert all(trainer.popen.wait(60) == 0 for trainer in trainers)
        wait_until(lambda: not chaos.undone(plant), 240)
        assert plant.stop_sidecar(150) == 0
        verdict = chaos.judge(plant, lambda _: None)
    assert verdict.faults == [] and verdict.journaled == verdict.emitted


def acknowledged(trainer: Trainer) -> int:
    last = last_emitted(trainer.side)
    return 0 if last is None else last.acknowledged


def emitted(trainer: Trainer) -> int:
    last = last_emitted(trainer.side)
    return 0 if last is None else last.number
