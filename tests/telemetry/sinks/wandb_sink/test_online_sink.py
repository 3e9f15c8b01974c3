"""The sink online, with the real wandb and a server on loopback that is well."""

from __future__ import annotations

import logging

import msgspec
import psutil
import pytest

from telemetry.sinks.base import START, SinkRejected, SinkUnavailable
from telemetry.sinks.wandb.server import STILL_S, Stopped
from telemetry.sinks.wandb.timeouts import Timeouts
from tests.fake_wandb import KEY, FakeRun

from .journal import expected_history, mixed_journal
from .stage import Stage, kill_core
from .surroundings import RUN_ID, teardown_wandb


def test_the_position_moves_when_the_server_shows_the_rows(stage: Stage) -> None:
    """Not before, whatever wandb returns; every value arrives; nothing is written offline."""
    rows = mixed_journal(300)
    sink = stage.begin(rows[:200])

    assert sink.commit().row == 0
    stage.wait_for_lines(len(expected_history(rows[:200])))
    assert sink.commit().row == 0
    stage.clock.pause(30)
    assert sink.commit().row == 200
    sink.write(rows[200:])
    assert sink.finish("finished", 0).row == 300
    stage.check_whole(rows)
    assert stage.run.states[-1] == "finished"
    assert stage.fragments() == []


def test_a_run_that_goes_on_is_preempted_and_then_taken_up_where_it_was(stage: Stage) -> None:
    """Without any wait behind a clean end: the server has shown all that was sent."""
    rows = mixed_journal(300)
    _, position = stage.write_some(rows[:150])
    states = list(stage.run.states)
    began_ns = stage.clock.wall

    final = stage.write_all(rows, position)

    assert (position.row, final.row) == (0, 300)
    assert states[-2:] == ["preempting", "failed"]
    assert "finished" not in states
    assert stage.clock.wall == began_ns
    stage.check_whole(rows)


def test_a_sweeps_run_that_goes_on_is_not_called_preempted(stage: Stage) -> None:
    """Its agent would be given the run a second time."""
    run = msgspec.structs.replace(stage.context.run, wandb_sweep_id="s1")
    stage.context = stage.context._replace(run=run)
    rows = mixed_journal(60)
    _, position = stage.write_some(rows[:30])

    stage.write_all(rows, position)

    assert "preempting" not in stage.run.states and stage.run.sweep == "s1"
    stage.check_whole(rows)


def test_a_finish_that_could_not_be_committed_is_repeated_without_a_row(stage: Stage) -> None:
    rows = mixed_journal(60)
    stage.write_all(rows)

    final = stage.write_all(rows)

    assert final.row == 60
    stage.check_whole(rows)


@pytest.mark.parametrize(
    ("status", "code", "states", "shown"),
    [
        ("finished", 0, ["finished"], 0),
        ("failed", 3, ["failed"], 3),
        ("preempted", 143, ["preempting", "failed"], 143),
        ("lost", None, ["failed"], 1),
    ],
)
def test_how_a_run_ended_is_handed_on(
    stage: Stage,
    status: str,
    code: int | None,
    states: list[str],
    shown: int,
) -> None:
    """Finished, failed with its exit code, preempted, or lost: failed, and with a tag that
    says so. The summary has the word itself."""
    sink = stage.begin(mixed_journal(10)[:5])

    sink.finish(status, code)

    run = stage.run
    assert run.states[-len(states) :] == states
    assert run.exit_code == shown
    assert ("lost" in run.tags) == (status == "lost")
    assert run.summary["telemetry/run_status"] == status


@pytest.mark.parametrize("is_stale", [False, True], ids=["late rows", "stale answers"])
def test_after_an_unclean_end_nothing_is_sent_until_the_server_stood_still(
    stage: Stage, is_stale: bool
) -> None:
    """Rows that show up 25 s late, for whatever reason, are waited for and not sent again."""
    rows = mixed_journal(400)
    sink = stage.begin(rows[:100])
    stage.wait_for_lines(10)
    stage.server.freeze_view() if is_stale else stage.server.hold_lines()
    sink.write(rows[100:300])
    before = len(stage.run.lines)
    stage.server.wait_for(lambda: stage.server.held_count() > 0 or len(stage.run.lines) > before)
    kill_core()
    began_ns = stage.clock.wall
    shown_ns: list[int] = []

    def wait(seconds: float) -> bool:
        stage.clock.pause(seconds)
        if stage.clock.wall - began_ns >= 25e9 and not shown_ns:
            shown_ns.append(stage.clock.wall)
            stage.server.thaw_view() if is_stale else stage.server.release_lines()
        elif not shown_ns:
            assert len(stage.run.lines) + stage.server.held_count() > before
        return False

    stage.context = stage.context._replace(wait=wait)
    final = stage.write_all(rows)

    assert final.row == 400
    assert stage.clock.wall - shown_ns[0] >= (STILL_S - 5) * 1e9
    stage.check_whole(rows)


def test_a_sink_that_is_told_to_stop_while_it_waits_stops(stage: Stage) -> None:
    """It does not take that for a server that is away."""
    stage.begin(mixed_journal(50))
    kill_core()
    teardown_wandb()

    with pytest.raises(Stopped):
        stage.sink(wait=lambda s: s > 0).open(START)

    assert not (stage.context.out_dir / "wandb-unresolved").exists()


def test_a_wandb_core_that_was_stopped_is_not_sent_beside(stage: Stage) -> None:
    """Woken up, it would send rows that another has sent by then. Fault 17."""
    stage.begin(mixed_journal(50))
    core = next(c for c in psutil.Process().children() if c.name() == "wandb-core")
    core.suspend()

    with pytest.raises(SinkUnavailable, match=str(core.pid)):
        stage.sink().open(START)

    kill_core()


def test_a_run_deleted_on_the_server_is_rejected(stage: Stage) -> None:
    """Neither made anew nor continued offline. The journal has it all."""
    rows = mixed_journal(60)
    final = stage.write_all(rows)
    stage.server.deleted.add(RUN_ID)
    teardown_wandb()

    with pytest.raises(SinkRejected, match="on the W&B server no more"):
        stage.sink().open(final)

    assert stage.fragments() == []


def test_a_run_id_in_conflict_is_rejected(stage: Stage) -> None:
    """An id that was deleted before this run ever had it can't be had either."""
    stage.timeouts = Timeouts(start_s=1)
    stage.server.deleted.add(RUN_ID)

    with pytest.raises(SinkRejected, match="previously created and deleted"):
        stage.sink().open(START)


def test_a_server_that_tells_nothing_is_believed_for_a_clean_finish(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Some servers answer a resume query with nothing. Then wandb's word counts, and is said."""
    stage.server.is_mute = True
    rows = mixed_journal(60)

    final = stage.write_all(rows)

    assert final.row == 60
    assert "does not tell what it has" in caplog.text
    stage.check_whole(rows)


def test_a_run_of_a_server_that_tells_nothing_is_not_sent_beside_what_it_may_have(
    stage: Stage,
) -> None:
    """wandb learns from the run's summary that there are rows. Which, nobody can tell: they
    stay in the journal and on this disk, and are not offered to be synced."""
    stage.server.is_mute = True
    rows = mixed_journal(60)
    _, position = stage.write_some(rows[:30])
    sent = stage.run.steps()

    with pytest.raises(SinkUnavailable, match="all of a sudden"):
        stage.write_all(rows, position)

    assert stage.run.steps() == sent and stage.run.conflicts == 0
    assert stage.to_sync() == []


def test_rows_that_the_server_has_lost_are_said(
    stage: Stage,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = mixed_journal(100)
    sink = stage.begin(rows)

    def lose(run: FakeRun) -> None:
        run.lines.pop(3, None)

    stage.server.on_lines = lose
    with caplog.at_level(logging.WARNING):
        sink.finish("finished", 0)

    assert "rows up to row" in caplog.text


def test_no_key_gets_into_a_file_or_the_log(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Nor into wandb's own logs. Fault 31."""
    with caplog.at_level(logging.DEBUG):
        stage.write_all(mixed_journal(20))

    files = [path for path in stage.context.out_dir.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in caplog.text
