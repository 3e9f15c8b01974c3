"""A server that can't be had: offline at once, and caught up when it is back."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable

import pytest

from shared.events import RunFinished
from telemetry.sinks.base import START, SinkBehind, SinkUnavailable
from telemetry.sinks.wandb import WandbSink, client
from telemetry.sinks.wandb.link import Link, LinkFile
from telemetry.sinks.wandb.online import Away
from telemetry.sinks.wandb.server import View, resume_query
from telemetry.sinks.wandb.timeouts import Timeouts
from tests.fake_wandb import FakeWandb
from tests.telemetry.sinks.helpers_rows import RowMaker

from .journal import mixed_journal
from .stage import DUE_S, Stage, commit_until_it_raises, kill_core, steps_of, upload
from .surroundings import RUN_ID, teardown_wandb

ROWS = mixed_journal(300)
UNRESOLVED = "wandb-unresolved"
SHORT = Timeouts(answer_s=0.5, start_s=1, finish_s=1, finish_limit_s=2)
"""A second is enough on loopback."""


@pytest.fixture(autouse=True)
def short_timeouts(stage: Stage) -> None:
    stage.timeouts = SHORT


@pytest.fixture
def asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb asks wandb-core every 15 s whether it was refused."""
    from wandb.sdk.lib.run_stopping import RunStopChecker

    monkeypatch.setitem(RunStopChecker.__init__.__kwdefaults__, "poll_interval", 0.1)


def without_key(server: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")


def refused(server: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")


def unknown(server: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://nowhere.invalid")


def unauthorized(server: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "1" * 40)


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        (without_key, "no W&B API key"),
        (refused, "can't be reached"),
        (unknown, "can't be reached"),
        (unauthorized, "refuses the API key"),
    ],
)
def test_a_run_that_began_offline_is_caught_up_when_the_server_is_back(
    stage: Stage,
    caplog: pytest.LogCaptureFixture,
    fails: Callable[[FakeWandb, pytest.MonkeyPatch], None],
    why: str,
) -> None:
    """Said once, offline at once, not done before the server has it, then nothing to sync.

    Faults 15 and 16.
    """
    with pytest.MonkeyPatch.context() as broken:
        fails(stage.server, broken)
        sink = stage.begin(ROWS)
        position = sink.commit()
        with pytest.raises(SinkUnavailable, match=why):
            sink.finish("finished", 0)
        sink.close()
        again = stage.begin(ROWS, position)
        with pytest.raises(SinkUnavailable, match=why):
            again.finish("finished", 0)
        again.close()
        assert stage.offline_steps() == steps_of(ROWS)
        assert stage.to_sync() != []
    said = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([r for r in said if "goes on offline" in r.getMessage()]) == 1

    final = stage.write_all(ROWS, position)

    assert (position.row, final.row) == (0, 300)
    stage.check_whole(ROWS)
    assert stage.superseded() == 1
    assert stage.to_sync() == []


@pytest.mark.parametrize("fault", ["401", "403", "429", "500", "hang", "cut"])
def test_whatever_a_server_does_the_question_ends_and_says_why(stage: Stage, fault: str) -> None:
    stage.server.fail(fault)

    with pytest.raises(SinkUnavailable, match="W&B server"):
        resume_query(stage.context, SHORT.answer_s)


def test_a_server_that_wants_operations_named_is_asked_without_wandb(stage: Stage) -> None:
    """wandb-core names none, and some servers go by the book."""
    stage.server.is_strict = True
    assert resume_query(stage.context, SHORT.answer_s) == View()

    stage.server.key = "another"
    with pytest.raises(SinkUnavailable, match="W&B server"):
        resume_query(stage.context, SHORT.answer_s)


def test_while_offline_the_server_is_tried_again_for_ever_with_back_off(stage: Stage) -> None:
    """Once it answers the process ends, and the next one brings the run up to date."""
    stage.server.fail("401")
    sink = stage.begin(ROWS[:100])
    tries = []
    for _ in range(600):
        before = sink._link.value.failures
        position = sink.commit()
        if sink._link.value.failures > before:
            tries.append(stage.clock.wall)
        stage.clock.pause(10)
    gaps_s = [(late - early) / 1e9 for early, late in itertools.pairwise(tries)]
    assert 8 < len(tries) < 40
    assert max(gaps_s) <= 620 and gaps_s[0] < gaps_s[-1]

    stage.server.calm()
    stage.clock.pause(DUE_S)
    with pytest.raises(SinkUnavailable, match="answers again"):
        sink.commit()
    sink.close()
    stage.write_all(ROWS, position)
    stage.check_whole(ROWS)


@pytest.mark.parametrize("fault", ["401", "403"])
def test_a_refusal_in_mid_run_is_noticed_and_made_up_for(
    stage: Stage, asks_often: None, fault: str
) -> None:
    """wandb says it on its console only. The fragments begin behind the server's last row.

    Fault 16.
    """
    sink = stage.begin_and_arrive(ROWS[:100])
    stage.clock.pause(31)
    position = sink.commit()
    stage.server.fail(fault, "file_stream")
    sink.write(ROWS[100:150])

    commit_until_it_raises(sink, client.Refused)
    _, position = stage.write_some(ROWS[:200], position)
    in_files = stage.offline_steps()

    stage.check_caught_up(ROWS, position)
    assert in_files == [step for step in steps_of(ROWS[:200]) if step >= 100]
    assert stage.superseded() == 1


def test_a_key_that_is_revoked_in_mid_run_is_noticed_and_made_up_for(
    stage: Stage, asks_often: None
) -> None:
    """Nothing can be asked any more, so what may have arrived is offered to nobody. Fault 16."""
    sink = stage.begin_and_arrive(ROWS[:100], 1)
    key, stage.server.key = stage.server.key, "another"
    sink.write(ROWS[100:150])
    position = sink.commit()

    commit_until_it_raises(sink, client.Refused)
    _, position = stage.write_some(ROWS[:200], position)
    assert stage.to_sync() == []

    stage.server.key = key
    stage.check_caught_up(ROWS, position)


def test_a_403_for_the_last_rows_is_noticed_at_the_end(stage: Stage) -> None:
    """wandb's finish looks fine."""
    sink = stage.begin([])
    stage.server.fail("403", "file_stream")
    sink.write(ROWS)

    with pytest.raises(client.Refused):
        sink.finish("finished", 0)

    sink.close()
    stage.check_caught_up(ROWS)


@pytest.mark.parametrize("fault", ["hang", "500", "429"])
def test_a_server_that_goes_away_in_mid_run_leaves_nothing_that_could_be_doubled(
    stage: Stage, fault: str
) -> None:
    """What may have arrived there is not offered to `wandb sync`. Fault 15."""
    sink = stage.begin_and_arrive(ROWS[:100], 1)
    stage.server.fail(fault)
    sink.write(ROWS[100:150])
    position = sink.commit()
    commit_until_it_raises(sink, Away, between=lambda: stage.clock.pause(31))

    _, position = stage.write_some(ROWS[:200], position)

    assert stage.fragments(UNRESOLVED) != [] and stage.fragments() == []
    assert stage.to_sync() == []
    stage.check_caught_up(ROWS, position)
    assert stage.fragments(UNRESOLVED) == []


@pytest.mark.parametrize("fault", ["hang", "500", "429", "cut"])
def test_a_finish_ends_in_time_whatever_the_server_does(stage: Stage, fault: str) -> None:
    """wandb's own limit does not bound it. The run is whole at the next try. Fault 15."""
    sink = stage.begin_and_arrive(ROWS[:100], 1)
    stage.server.fail(fault)
    sink.write(ROWS[100:])
    began_s = time.monotonic()

    with pytest.raises(SinkUnavailable):
        sink.finish("finished", 0)

    took_s = time.monotonic() - began_s
    sink.close()
    assert took_s < SHORT.finish_limit_s + 30, "and much less where there is a core to run on"
    stage.check_caught_up(ROWS)
    assert stage.run.states[-1] == "finished"


def test_an_answer_that_is_lost_on_its_way_doubles_nothing(stage: Stage) -> None:
    """The server has the rows, and wandb can't know: it sends them to the same places."""
    sink = stage.begin_and_arrive(ROWS[:50])
    stage.server.fail("applied-cut", "file_stream")
    sink.write(ROWS[50:200])
    stage.wait_for_lines(len(steps_of(ROWS[:50])) + 1)
    kill_core()
    stage.server.calm()

    stage.write_all(ROWS)

    stage.check_whole(ROWS)


def test_a_kill_between_the_move_of_fragments_and_the_commit_leaves_no_hole(stage: Stage) -> None:
    """The old position speaks of fragments that are gone: new ones begin at the server's row."""
    stage.server.fail("401")
    _, position = stage.write_some(ROWS[:100])
    stage.server.calm()
    stage.begin([], position)
    kill_core()
    assert stage.superseded() == 1
    stage.server.fail("401")

    stage.write_some(ROWS[:200], position)

    assert stage.offline_steps(UNRESOLVED) == steps_of(ROWS[:200])
    stage.check_caught_up(ROWS, position)


def test_fragments_that_somebody_has_synced_are_not_sent_again(stage: Stage) -> None:
    """The server is asked: it has their rows, and gets only those behind."""
    stage.server.fail("401")
    _, position = stage.write_some(ROWS[:100])
    stage.server.calm()
    upload(stage.to_sync())
    assert stage.run.steps() == steps_of(ROWS[:100])

    stage.write_all(ROWS, position)

    stage.check_whole(ROWS)


def test_rows_that_show_up_while_wandb_starts_are_not_offered_to_be_synced(stage: Stage) -> None:
    """What the server showed was not all: what is written offline now, it may have already."""
    stage.begin(ROWS[:100]).close()
    early = steps_of(ROWS[:50])
    stale = View(True, len(early), early[-1])
    link = LinkFile(stage.context.out_dir / "wandb", RUN_ID)
    link.set(Link(last_row=stale.last_row, count=stale.row_count))
    teardown_wandb()

    again = WandbSink(
        stage.context, stage.clock, stage.clock.pause, lambda _: stale, timeouts=SHORT
    )
    first = again.open(START)
    again.write(ROWS[first:200])
    position = again.commit()
    again.close()

    assert stage.to_sync() == []
    assert stage.offline_steps(UNRESOLVED) != []
    stage.check_caught_up(ROWS, position)


def test_a_torn_fragment_is_cut_so_that_it_can_be_synced(stage: Stage) -> None:
    """What was cut is kept beside. Torn, it would get no mark, and double at the second sync."""
    stage.context = stage.context._replace(options={"mode": "offline"})
    stage.begin(ROWS[:100]).close()
    (path,) = stage.fragments()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])

    stage.write_all(ROWS)
    torn = next(path.parent.glob("*.torn-at-*"))
    assert path.read_bytes() + torn.read_bytes() == whole[:-5]
    fragments = stage.to_sync()
    for _ in range(2):
        upload(fragments)

    stage.check_whole(ROWS)


def test_tries_of_an_ended_run_add_no_fragment_each(stage: Stage) -> None:
    """A server that is away for a week is asked two thousand times. The last row, the run's
    end, has a summary and no history row that a file would tell of."""
    made = RowMaker()
    made.start()
    for step in range(20):
        made.metrics(step, {"train/loss": 1.0})
    made.append(RunFinished(status="finished", exit_code=0, summary={"best": 1.0}))
    stage.server.fail("401")
    counts = []
    for _ in range(4):
        sink = stage.begin(made.rows)
        with pytest.raises(SinkBehind, match="refuses the API key"):
            sink.finish("finished", 0)
        sink.close()
        counts.append(len(stage.fragments()))

    stage.check_caught_up(made.rows)

    assert counts == [1, 1, 1, 1]
    assert LinkFile(stage.context.out_dir / "wandb", RUN_ID).value.settled_row == 0
    assert stage.run.states[-1] == "finished"
