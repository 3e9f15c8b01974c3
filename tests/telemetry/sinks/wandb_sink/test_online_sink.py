"""The sink online, with the real wandb and a server on loopback that is well."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import psutil
import pytest

from telemetry.journal.rows import Row
from telemetry.sinks.base import START, Position, SinkContext, SinkRejected, SinkUnavailable
from telemetry.sinks.wandb import WandbSink, client, offline
from telemetry.sinks.wandb.server import STILL_S, Stopped
from tests.fake_wandb import KEY, FakeRun, FakeWandb

from .conftest import RUN_ID, ManualClock, make_context, teardown_wandb
from .journal import expected_history, mixed_journal, server_history


@pytest.fixture
def online(tmp_path: Path, clock: ManualClock, server: FakeWandb) -> SinkContext:
    return make_context(tmp_path / "run", "online")._replace(wait=clock.pause)


def make_sink(context: SinkContext, clock: ManualClock) -> WandbSink:
    return WandbSink(context, clock, clock.pause)


def saved(position: Position) -> Position:
    """A position as it comes back from its file."""
    return Position(position.row, json.loads(json.dumps(position.state)))


def write_from(sink: WandbSink, rows: list[Row], first: int) -> None:
    sink.write([row for row in rows if row.row >= first])


def run_on(
    context: SinkContext, clock: ManualClock, rows: list[Row], position: Position
) -> Position:
    """One more sink process, to the end of the run."""
    teardown_wandb()
    sink = make_sink(context, clock)
    write_from(sink, rows, sink.open(saved(position)))
    final = sink.finish("finished", 0)
    sink.close()
    return final


def has_lines(server: FakeWandb, count: int) -> Any:
    return lambda: RUN_ID in server.runs and len(server.runs[RUN_ID].lines) >= count


def kill_core() -> None:
    for child in psutil.Process().children(recursive=True):
        if child.name() == "wandb-core":
            child.kill()
            child.wait()


def the_run(server: FakeWandb) -> FakeRun:
    return server.runs[RUN_ID]


def check_whole(server: FakeWandb, rows: list[Row]) -> None:
    assert the_run(server).conflicts == 0
    assert server_history(the_run(server)) == expected_history(rows)


def test_the_position_moves_when_the_server_shows_the_rows(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """Not before, whatever wandb returns; every value arrives; nothing is written offline."""
    rows = mixed_journal(300)
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(rows[:200])

    assert sink.commit().row == 0
    server.wait_for(has_lines(server, len(expected_history(rows[:200]))))
    assert sink.commit().row == 0
    clock.pause(30)
    assert sink.commit().row == 200
    sink.write(rows[200:])
    assert sink.finish("finished", 0).row == 300
    check_whole(server, rows)
    assert the_run(server).states[-1] == "finished"
    assert offline.fragment_paths(online.out_dir / "wandb", RUN_ID) == []


def test_a_run_that_goes_on_is_preempted_and_then_taken_up_where_it_was(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """Without any wait behind a clean end: the server has shown all that was sent."""
    rows = mixed_journal(300)
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(rows[:150])
    position = sink.commit()
    sink.close()
    states = list(the_run(server).states)
    began_ns = clock.now_ns

    final = run_on(online, clock, rows, position)

    assert (position.row, final.row) == (0, 300)
    assert states[-2:] == ["preempting", "failed"]
    assert "finished" not in states
    assert clock.now_ns == began_ns
    check_whole(server, rows)


def test_a_sweeps_run_that_goes_on_is_not_called_preempted(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """Its agent would be given the run a second time."""
    context = online._replace(run={**online.run, "wandb_sweep_id": "s1"})
    rows = mixed_journal(60)
    sink = make_sink(context, clock)
    sink.open(START)
    sink.write(rows[:30])
    position = sink.commit()
    sink.close()

    run_on(context, clock, rows, position)

    assert "preempting" not in the_run(server).states and the_run(server).sweep == "s1"
    check_whole(server, rows)


def test_a_finish_that_could_not_be_committed_is_repeated_without_a_row(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    rows = mixed_journal(60)
    run_on(online, clock, rows, START)

    final = run_on(online, clock, rows, START)

    assert final.row == 60
    check_whole(server, rows)


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
    online: SinkContext,
    clock: ManualClock,
    server: FakeWandb,
    status: str,
    code: int | None,
    states: list[str],
    shown: int,
) -> None:
    """Finished, failed with its exit code, preempted, or lost: failed, and with a tag that
    says so. The summary has the word itself."""
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(mixed_journal(10)[:5])

    sink.finish(status, code)

    run = the_run(server)
    assert run.states[-len(states) :] == states
    assert run.exit_code == shown
    assert ("lost" in run.tags) == (status == "lost")
    assert run.summary["telemetry/run_status"] == status


@pytest.mark.parametrize("is_stale", [False, True], ids=["late rows", "stale answers"])
def test_after_an_unclean_end_nothing_is_sent_until_the_server_stood_still(
    online: SinkContext, clock: ManualClock, server: FakeWandb, is_stale: bool
) -> None:
    """Rows that show up 25 s late, for whatever reason, are waited for and not sent again."""
    rows = mixed_journal(400)
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(rows[:100])
    server.wait_for(has_lines(server, 10))
    server.freeze_view() if is_stale else server.hold_lines()
    sink.write(rows[100:300])
    before = len(the_run(server).lines)
    server.wait_for(lambda: server.held_count() > 0 or len(the_run(server).lines) > before)
    kill_core()
    began_ns = clock.now_ns
    shown_ns: list[int] = []

    def wait(seconds: float) -> bool:
        clock.pause(seconds)
        if clock.now_ns - began_ns >= 25e9 and not shown_ns:
            shown_ns.append(clock.now_ns)
            server.thaw_view() if is_stale else server.release_lines()
        elif not shown_ns:
            assert len(the_run(server).lines) + server.held_count() > before
        return False

    final = run_on(online._replace(wait=wait), clock, rows, START)

    assert final.row == 400
    assert clock.now_ns - shown_ns[0] >= (STILL_S - 5) * 1e9
    check_whole(server, rows)


def test_a_sink_that_is_told_to_stop_while_it_waits_stops(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """It does not take that for a server that is away."""
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(mixed_journal(50))
    kill_core()
    teardown_wandb()

    with pytest.raises(Stopped):
        make_sink(online._replace(wait=lambda s: s > 0), clock).open(START)

    assert not (online.out_dir / "wandb-unresolved").exists()


def test_a_wandb_core_that_was_stopped_is_not_sent_beside(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """Woken up, it would send rows that another has sent by then. Fault 17."""
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(mixed_journal(50))
    core = next(c for c in psutil.Process().children() if c.name() == "wandb-core")
    core.suspend()

    with pytest.raises(SinkUnavailable, match=str(core.pid)):
        make_sink(online, clock).open(START)

    kill_core()


def test_a_run_deleted_on_the_server_is_rejected(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """Neither made anew nor continued offline. The journal has it all."""
    rows = mixed_journal(60)
    final = run_on(online, clock, rows, START)
    server.deleted.add(RUN_ID)
    teardown_wandb()

    with pytest.raises(SinkRejected, match="on the W&B server no more"):
        make_sink(online, clock).open(final)

    assert offline.fragment_paths(online.out_dir / "wandb", RUN_ID) == []


def test_a_run_id_in_conflict_is_rejected(
    online: SinkContext,
    clock: ManualClock,
    server: FakeWandb,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An id that was deleted before this run ever had it can't be had either."""
    monkeypatch.setitem(client._SETTINGS, "init_timeout", 1)
    server.deleted.add(RUN_ID)

    with pytest.raises(SinkRejected, match="previously created and deleted"):
        make_sink(online, clock).open(START)


def test_a_server_that_tells_nothing_is_believed_for_a_clean_finish(
    online: SinkContext, clock: ManualClock, server: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    """Some servers answer a resume query with nothing. Then wandb's word counts, and is said."""
    server.is_mute = True
    rows = mixed_journal(60)

    final = run_on(online, clock, rows, START)

    assert final.row == 60
    assert "does not tell what it has" in caplog.text
    check_whole(server, rows)


def test_a_run_of_a_server_that_tells_nothing_is_not_sent_beside_what_it_may_have(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """wandb learns from the run's summary that there are rows. Which, nobody can tell: they
    stay in the journal and on this disk, and are not offered to be synced."""
    server.is_mute = True
    rows = mixed_journal(60)
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(rows[:30])
    position = sink.commit()
    sink.close()
    sent = the_run(server).steps()

    with pytest.raises(SinkUnavailable, match="all of a sudden"):
        run_on(online, clock, rows, position)

    assert the_run(server).steps() == sent and the_run(server).conflicts == 0
    assert make_sink(online, clock).sync_command() is None


def test_rows_that_the_server_has_lost_are_said(
    online: SinkContext,
    clock: ManualClock,
    server: FakeWandb,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = mixed_journal(100)
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(rows)

    def lose(run: FakeRun) -> None:
        run.lines.pop(3, None)

    server.on_lines = lose
    with caplog.at_level(logging.WARNING):
        sink.finish("finished", 0)

    assert "rows up to row" in caplog.text


def test_no_key_gets_into_a_file_or_the_log(
    online: SinkContext, clock: ManualClock, server: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor into wandb's own logs. Fault 31."""
    with caplog.at_level(logging.DEBUG):
        run_on(online, clock, mixed_journal(20), START)

    files = [path for path in online.out_dir.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in caplog.text
