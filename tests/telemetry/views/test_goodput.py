"""Goodput: every second of a run has one cause, and steps that were done again are no progress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.events import Event, MetricsLogged
from telemetry.__main__ import main
from telemetry.views.columns import read_columns
from telemetry.views.goodput import CAUSES, SPANS, Goodput, goodput_of, goodput_of_run
from telemetry.views.goodput_lines import goodput_lines
from telemetry.views.step_times import RankTimes
from tests.shared.strategies import INT64, SCALARS
from tests.telemetry.views.journals import (
    Said,
    finished,
    started,
    steps,
    write_journal,
)


def spent(found: Goodput) -> dict[str, float]:
    """The causes that took any time, to the microsecond."""
    return {cause: round(s, 6) for cause, s in found.seconds.items() if abs(s) > 1e-6}


def phase(name: str, seconds: float, step: int) -> MetricsLogged:
    return MetricsLogged(kind="custom", step=step, values={f"time/{name}_seconds": seconds})


def test_a_run_without_a_break_is_startup_training_and_what_is_between(tmp_path: Path) -> None:
    """Steps of 1 s from second 20 on, an evaluation of 5 s and a checkpoint of 3 s."""
    run = write_journal(
        tmp_path / "r",
        [
            Said([started()], 0),
            Said(steps(1, 10, **{"train/step_seconds": 1.0}), 21),
            Said([phase("evaluation", 5, 10)], 35),
            Said([phase("checkpoint", 3, 10)], 38),
            Said(steps(11, 20, **{"train/step_seconds": 1.0}), 39),
            Said([finished()], 50),
        ],
    )

    found = goodput_of_run(run)

    assert found.total_s == 50
    assert spent(found) == {
        "startup": 20, "training": 20, "evaluation": 5, "checkpoint": 3, "unknown": 2,
    }  # fmt: skip
    assert found.goodput_ratio == 0.4
    assert (found.sessions, found.steps, found.lost_steps) == (1, 20, 0)
    assert goodput_lines(found) == [
        "time: 50.0 s: goodput 40.0%, startup 40.0%, evaluation 10.0%, checkpoint 6.0%, "
        "unknown 4.0%"
    ]


def test_a_restart_loses_the_steps_behind_its_checkpoint(tmp_path: Path) -> None:
    """Logged every five steps: of a window that the checkpoint lies in, a part counts."""

    def every_fifth(*numbers: int) -> list[Event]:
        return [event for n in numbers for event in steps(n, n, **{"train/step_seconds": 1.0})]

    run = write_journal(
        tmp_path / "r",
        [
            Said([started()], 0),
            Said(every_fifth(5, 10, 15, 20), 5, apart_s=5),
            # Killed at 20 s; the next one begins at 50 s and goes on from step 12 at 60 s.
            Said([started(12)], 50, session="s2"),
            Said(every_fifth(15, 20, 25), 63, session="s2", apart_s=5),
            Said([finished()], 73, session="s2"),
        ],
    )

    found = goodput_of_run(run)

    assert spent(found) == {"training": 12 + 13, "lost_work": 8, "restart": 30 + 10}
    assert found.lost_steps == 2  # 15 and 20 were logged twice
    assert goodput_lines(found)[1] == "lost work: 2 logged steps, 8.0 s"


def test_a_step_that_takes_many_times_the_usual_is_a_stall(tmp_path: Path) -> None:
    """All of it but the usual time of a step; a pause of a few seconds is training."""
    run = write_journal(
        tmp_path / "r",
        [
            Said([started(), *steps(1, 10)], 0),
            Said(steps(11, 20), 19),  # 9 s for one step: 8 s more than usual
            Said(steps(21, 30), 128),  # 100 s for one step
            Said([finished()], 137),
        ],
    )

    found = goodput_of_run(run)

    assert spent(found) == {"stalled": 99, "training": 38}


@pytest.mark.parametrize("has_end", [True, False], ids=["finished", "killed"])
def test_silence_before_a_kill_is_a_stall(tmp_path: Path, has_end: bool) -> None:
    """A process that hangs still tells of itself; one that has finished had other things to do."""
    alive = MetricsLogged(kind="custom", values={"telemetry/events_total": 1})
    run = write_journal(
        tmp_path / "r",
        [Said([started(), *steps(1, 10)], 0), Said([finished() if has_end else alive], 310)],
    )

    found = goodput_of_run(run)

    assert found.seconds["stalled"] == (0 if has_end else 299)
    assert found.seconds["unknown"] == (300 if has_end else 1)


def test_a_session_without_a_step_was_a_restart_that_came_to_nothing(tmp_path: Path) -> None:
    run = write_journal(
        tmp_path / "r",
        [
            Said([started(), *steps(1, 10)], 0),
            Said([started(10), phase("checkpoint", 1, 10)], 100, session="s2", apart_s=20),
            Said([started(10), *steps(11, 20), finished()], 200, session="s3"),
        ],
    )

    found = goodput_of_run(run)

    assert spent(found) == {
        "training": 20, "restart": 90 + 19 + 80, "checkpoint": 1, "unknown": 1,
    }  # fmt: skip
    assert found.lost_steps == 0


def test_a_live_second_session_ends_the_time_of_the_first(tmp_path: Path) -> None:
    """No second is counted twice where two sessions run at once."""
    run = write_journal(
        tmp_path / "r",
        [
            Said([started(), *steps(1, 10)], 0),
            Said([started(5), *steps(6, 20)], 5, session="s2"),
            Said(steps(11, 30), 11),
        ],
    )

    found = goodput_of_run(run)

    assert found.total_s == 20
    assert sum(found.seconds.values()) == pytest.approx(20)


def test_a_run_without_steps_or_without_length_has_no_shares(tmp_path: Path) -> None:
    """Nothing is divided by nothing."""
    alone = write_journal(tmp_path / "r", [Said([started()])])
    hardware = MetricsLogged(kind="hardware", values={"cpu_percent": 1.0})
    none = write_journal(tmp_path / "h", [Said([hardware], source="hardware:n", session="h")])

    for run in (alone, none):
        found = goodput_of_run(run)
        assert (found.total_s, found.ratios, found.goodput_ratio) == (0.0, {}, None)
        assert goodput_lines(found) == []


TIMES = st.floats(0, 1e5).map(lambda s: round(s, 3))


@st.composite
def sessions(draw: st.DrawFn) -> list[Said]:
    """Sessions with rows at any times, some before their start and some late."""
    said = []
    for number in range(draw(st.integers(1, 4))):
        name = f"s{number}"
        resumed = draw(st.none() | st.integers(0, 40))
        said.append(Said([started(resumed)], draw(TIMES), session=name))
        for _ in range(draw(st.integers(0, 4))):
            first = draw(st.integers(0, 60))
            rows: list[Event] = steps(first, first + draw(st.integers(0, 5)))
            if draw(st.booleans()):
                rows.append(phase("evaluation", draw(st.floats()), first))
            if draw(st.booleans()):
                rows.append(phase("checkpoint", draw(TIMES), first))
            late = draw(st.booleans())
            said.append(Said(rows, draw(TIMES), session=name, is_late=late, apart_s=draw(TIMES)))
        if draw(st.booleans()):
            said.append(Said([finished()], draw(TIMES), session=name))
    return said


@settings(max_examples=60, deadline=None)
@given(said=sessions())
def test_the_causes_always_add_up(tmp_path_factory: pytest.TempPathFactory, said: Any) -> None:
    """To the length of the run, and the ratios to 1; none is below 0."""
    found = goodput_of(read_columns(write_journal(tmp_path_factory.mktemp("g") / "r", said)))

    assert list(found.seconds) == list(CAUSES)
    assert all(seconds >= 0 for seconds in found.seconds.values())
    assert sum(found.seconds.values()) == pytest.approx(found.total_s, abs=1e-3)
    assert sum(found.ratios.values()) == pytest.approx(1) or found.total_s == 0


@settings(max_examples=40, deadline=None)
@given(
    resumed=st.none() | st.integers(-(2**63), 2**64 - 1),
    rows=st.lists(
        st.builds(
            MetricsLogged,
            kind=st.sampled_from(["train", "custom"]),
            step=INT64,
            values=st.dictionaries(
                st.sampled_from([*SPANS.values(), "train/step_seconds", "rank/0/work_seconds",
                                 "rank/1/work_seconds", "train/input_seconds"]),
                SCALARS,
            ),
        ),
        max_size=8,
    ),
)  # fmt: skip
def test_any_value_may_be_logged_by_these_names(
    tmp_path_factory: pytest.TempPathFactory, resumed: int | None, rows: Any
) -> None:
    """Any step, 1e300 seconds, NaN, a text: the causes add up, and the lines can be said."""
    said = [Said([started(), *rows]), Said([started(resumed), *rows], 100, session="s2")]

    found = goodput_of_run(write_journal(tmp_path_factory.mktemp("g") / "r", said))

    assert all(seconds >= 0 for seconds in found.seconds.values())
    assert sum(found.seconds.values()) == pytest.approx(found.total_s, abs=1e-3)
    assert all(line.isprintable() for line in goodput_lines(found))


# --- steps


def ranks(tmp_path: Path, *work: list[float], inputs: list[float] = ()) -> Goodput:  # type: ignore[assignment]
    """A run of several ranks: `work` has the seconds of each rank, step by step."""
    said = []
    for rank, of_rank in enumerate(work):
        rows: list[Event] = []
        for step, seconds in enumerate(of_rank, 1):
            values: dict[str, float | int | bool | str] = {
                f"rank/{rank}/work_seconds": seconds,
                "train/step_seconds" if rank == 0 else f"rank/{rank}/step_seconds": 1.0,
            }
            if inputs:
                values[f"rank/{rank}/input_seconds"] = inputs[rank]
            rows.append(MetricsLogged(kind="train", step=step, values=values))
        said.append(Said([started(), *rows], source=f"rank{rank}"))
    return goodput_of_run(write_journal(tmp_path / "r", said))


def test_the_parts_of_a_step_are_means_and_the_rest(tmp_path: Path) -> None:
    def parts(step: int, seconds: float) -> list[Event]:
        named = {"input": 0.1, "forward": 0.2, "backward": 0.4, "optimizer": 0.1}
        values = {f"train/{part}_seconds": seconds * share for part, share in named.items()}
        return steps(step, step, **{"train/step_seconds": seconds, **values})

    # The second step is done again, twice as fast.
    said = [Said([started(), *parts(1, 1.0), *parts(2, 8.0)]),
            Said([started(1), *parts(2, 3.0)], 100, session="s2")]  # fmt: skip
    found = goodput_of_run(write_journal(tmp_path / "r", said)).step_times

    assert found.step_s == 2.0
    expected = {"input": 0.2, "forward": 0.4, "backward": 0.8, "optimizer": 0.2, "other": 0.4}
    assert found.parts == {part: pytest.approx(each) for part, each in expected.items()}
    assert found.ranks == [] and found.straggler is None


@pytest.mark.parametrize(("inputs", "cause"), [([0.1, 0.1, 0.3], "input"), ([0.1] * 3, "compute")])
def test_a_rank_that_is_always_slow_is_named_with_its_cause(
    tmp_path: Path, inputs: list[float], cause: str
) -> None:
    found = ranks(tmp_path, [0.5] * 4, [0.5] * 4, [0.8] * 4, inputs=inputs)

    slow = found.step_times.straggler
    assert slow is not None and (slow.rank, slow.cause) == (2, cause)
    assert (slow.ratio, slow.excess_s) == (pytest.approx(1.6), pytest.approx(0.3))
    assert found.step_times.ranks[0] == RankTimes(
        rank=0, work_s=0.5, input_s=inputs[0], waiting_s=pytest.approx(0.3)
    )
    assert goodput_lines(found)[-1] == (
        f"ranks: rank 2 is slow by {cause}: its work takes 1.60 times the median, 0.3 s more a step"
    )


def test_ranks_that_take_turns_at_being_slow_wait_for_each_other(tmp_path: Path) -> None:
    found = ranks(tmp_path, [0.5, 0.9, 0.5, 0.9], [0.9, 0.5, 0.9, 0.5])

    slow = found.step_times.straggler
    assert slow is not None and (slow.rank, slow.cause) == (None, "waiting")
    assert slow.excess_s == pytest.approx(0.2)
    assert goodput_lines(found)[-1].startswith("ranks: they take turns")


def test_even_ranks_have_no_straggler(tmp_path: Path) -> None:
    assert ranks(tmp_path, [0.5] * 3, [0.51] * 3).step_times.straggler is None


def test_inspect_tells_it_in_a_line_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same numbers, and nothing is written by looking."""
    run = write_journal(tmp_path / "r", [Said([started(), *steps(1, 10), finished()])])
    before = sorted(run.rglob("*"))

    assert main(["inspect", str(run)]) == 0
    text = capsys.readouterr().out
    assert main(["inspect", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["goodput"]

    assert "time: 11.0 s: goodput 90.9%, unknown 9.1%" in text.splitlines()
    assert told["seconds"]["training"] == 10 and told["step_times"]["ranks"] == []
    assert sorted(run.rglob("*")) == before
