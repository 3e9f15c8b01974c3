"""A server that can't be had: offline at once, and caught up when it is back."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.events import RunFinished
from telemetry.journal.rows import Row
from telemetry.sinks.base import START, Position, SinkBehind, SinkContext, SinkUnavailable
from telemetry.sinks.wandb import WandbSink, client, offline
from telemetry.sinks.wandb import server as server_module
from telemetry.sinks.wandb.link import Link, LinkFile
from telemetry.sinks.wandb.online import Away
from telemetry.sinks.wandb.server import View, resume_query
from tests.fake_wandb import FakeWandb
from tests.telemetry.sinks.helpers_rows import RowMaker

from .conftest import RUN_ID, ManualClock, teardown_wandb
from .journal import expected_history, mixed_journal, written_history
from .test_online_sink import (
    check_whole,
    has_lines,
    kill_core,
    make_sink,
    online,
    run_on,
    saved,
    the_run,
    write_from,
)

__all__ = ["online"]
ROWS = mixed_journal(300)


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch, server: FakeWandb) -> None:
    """A second is enough on loopback."""
    monkeypatch.setattr(server_module, "ASK_TIMEOUT_S", 0.5)
    monkeypatch.setitem(client._SETTINGS, "init_timeout", 1)
    monkeypatch.setitem(client._SETTINGS, "finish_timeout", 1)
    monkeypatch.setattr(client, "FINISH_LIMIT_S", 2.0)


@pytest.fixture
def asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb asks wandb-core every 15 s whether it was refused."""
    from wandb.sdk.lib.run_stopping import RunStopChecker

    monkeypatch.setitem(RunStopChecker.__init__.__kwdefaults__, "poll_interval", 0.1)


def offline_rows(context: SinkContext) -> list[int]:
    return [row["_step"] for row in written_history(context.out_dir)]


def steps_of(rows: list[Row]) -> list[int]:
    return [row["_step"] for row in expected_history(rows)]


def superseded(context: SinkContext) -> int:
    return offline.superseded_count(context.out_dir / "wandb", RUN_ID)


def go_on(context: SinkContext, clock: ManualClock, position: Position) -> tuple[WandbSink, int]:
    """The sink process after the one before."""
    teardown_wandb()
    sink = make_sink(context, clock)
    return sink, sink.open(saved(position))


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
    online: SinkContext,
    clock: ManualClock,
    server: FakeWandb,
    caplog: pytest.LogCaptureFixture,
    fails: Callable[[FakeWandb, pytest.MonkeyPatch], None],
    why: str,
) -> None:
    """Said once, offline at once, not done before the server has it, then nothing to sync.

    Faults 15 and 16.
    """
    with pytest.MonkeyPatch.context() as broken:
        fails(server, broken)
        sink = make_sink(online, clock)
        write_from(sink, ROWS, sink.open(START))
        position = sink.commit()
        with pytest.raises(SinkUnavailable, match=why):
            sink.finish("finished", 0)
        sink.close()
        again, first = go_on(online, clock, position)
        write_from(again, ROWS, first)
        with pytest.raises(SinkUnavailable, match=why):
            again.finish("finished", 0)
        again.close()
        assert offline_rows(online) == steps_of(ROWS)
        assert again.sync_command() is not None
    said = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([r for r in said if "goes on offline" in r.getMessage()]) == 1

    final = run_on(online, clock, ROWS, position)

    assert (position.row, final.row) == (0, 300)
    check_whole(server, ROWS)
    assert superseded(online) == 1
    assert again.sync_command() is None


@pytest.mark.parametrize("fault", ["401", "403", "429", "500", "hang", "cut"])
def test_whatever_a_server_does_the_question_ends_and_says_why(
    online: SinkContext, server: FakeWandb, fault: str
) -> None:
    server.fail(fault)

    with pytest.raises(SinkUnavailable, match="W&B server"):
        resume_query(online)


def test_a_server_that_wants_operations_named_is_asked_without_wandb(
    online: SinkContext, server: FakeWandb
) -> None:
    """wandb-core names none, and some servers go by the book."""
    server.is_strict = True
    assert resume_query(online) == View()

    server.key = "another"
    with pytest.raises(SinkUnavailable, match="W&B server"):
        resume_query(online)


def test_while_offline_the_server_is_tried_again_for_ever_with_back_off(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """Once it answers the process ends, and the next one brings the run up to date."""
    server.fail("401")
    sink = make_sink(online, clock)
    write_from(sink, ROWS[:100], sink.open(START))
    tries = []
    for _ in range(600):
        before = len(server.requests), sink._link.value.failures
        position = sink.commit()
        if sink._link.value.failures > before[1]:
            tries.append(clock.now_ns)
        clock.pause(10)
    gaps_s = [(late - early) / 1e9 for early, late in itertools.pairwise(tries)]
    assert 8 < len(tries) < 40
    assert max(gaps_s) <= 620 and gaps_s[0] < gaps_s[-1]

    server.calm()
    clock.pause(700)
    with pytest.raises(SinkUnavailable, match="answers again"):
        sink.commit()
    sink.close()
    run_on(online, clock, ROWS, position)
    check_whole(server, ROWS)


@pytest.mark.parametrize("fault", ["401", "403"])
def test_a_refusal_in_mid_run_is_noticed_and_made_up_for(
    online: SinkContext, clock: ManualClock, server: FakeWandb, asks_often: None, fault: str
) -> None:
    """wandb says it on its console only. The fragments begin behind the server's last row.

    Fault 16.
    """
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(ROWS[:100])
    server.wait_for(has_lines(server, len(steps_of(ROWS[:100]))))
    clock.pause(31)
    position = sink.commit()
    server.fail(fault, "file_stream")
    sink.write(ROWS[100:150])

    with pytest.raises(client.Refused):
        while True:
            sink.commit()
    sink.close()
    again, first = go_on(online, clock, position)
    write_from(again, ROWS[:200], first)
    position = again.commit()
    again.close()
    in_files = offline_rows(online)
    server.calm()
    clock.pause(700)
    run_on(online, clock, ROWS, position)

    assert in_files == [step for step in steps_of(ROWS[:200]) if step >= 100]
    check_whole(server, ROWS)
    assert superseded(online) == 1


def test_a_key_that_is_revoked_in_mid_run_is_noticed_and_made_up_for(
    online: SinkContext, clock: ManualClock, server: FakeWandb, asks_often: None
) -> None:
    """Nothing can be asked any more, so what may have arrived is offered to nobody. Fault 16."""
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(ROWS[:100])
    server.wait_for(has_lines(server, 1))
    key, server.key = server.key, "another"
    sink.write(ROWS[100:150])
    position = sink.commit()

    with pytest.raises(client.Refused):
        while True:
            sink.commit()
    sink.close()
    again, first = go_on(online, clock, position)
    write_from(again, ROWS[:200], first)
    position = again.commit()
    again.close()
    assert again.sync_command() is None
    server.key = key
    clock.pause(700)
    run_on(online, clock, ROWS, position)

    check_whole(server, ROWS)


def test_a_403_for_the_last_rows_is_noticed_at_the_end(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """wandb's finish looks fine."""
    sink = make_sink(online, clock)
    sink.open(START)
    server.fail("403", "file_stream")
    sink.write(ROWS)

    with pytest.raises(client.Refused):
        sink.finish("finished", 0)

    sink.close()
    server.calm()
    clock.pause(700)
    run_on(online, clock, ROWS, START)
    check_whole(server, ROWS)


@pytest.mark.parametrize("fault", ["hang", "500", "429"])
def test_a_server_that_goes_away_in_mid_run_leaves_nothing_that_could_be_doubled(
    online: SinkContext, clock: ManualClock, server: FakeWandb, fault: str
) -> None:
    """What may have arrived there is not offered to `wandb sync`. Fault 15."""
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(ROWS[:100])
    server.wait_for(has_lines(server, 1))
    server.fail(fault)
    sink.write(ROWS[100:150])
    position = sink.commit()
    with pytest.raises(Away):
        while True:
            clock.pause(31)
            sink.commit()
    sink.close()
    again, first = go_on(online, clock, position)
    write_from(again, ROWS[:200], first)
    position = again.commit()
    again.close()

    unresolved = online.out_dir / "wandb-unresolved" / "wandb"
    assert offline.fragment_paths(unresolved, RUN_ID) != []
    assert offline.fragment_paths(online.out_dir / "wandb", RUN_ID) == []
    assert again.sync_command() is None
    server.calm()
    run_on(online, clock, ROWS, position)
    check_whole(server, ROWS)
    assert offline.fragment_paths(unresolved, RUN_ID) == []


@pytest.mark.parametrize("fault", ["hang", "500", "429", "cut"])
def test_a_finish_ends_in_time_whatever_the_server_does(
    online: SinkContext, clock: ManualClock, server: FakeWandb, fault: str
) -> None:
    """wandb's own limit does not bound it. The run is whole at the next try. Fault 15."""
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(ROWS[:100])
    server.wait_for(has_lines(server, 1))
    server.fail(fault)
    sink.write(ROWS[100:])
    began_s = time.monotonic()

    with pytest.raises(SinkUnavailable):
        sink.finish("finished", 0)

    took_s = time.monotonic() - began_s
    sink.close()
    assert took_s < client.FINISH_LIMIT_S + 30, "and much less where there is a core to run on"
    server.calm()
    run_on(online, clock, ROWS, START)
    check_whole(server, ROWS)
    assert the_run(server).states[-1] == "finished"


def test_an_answer_that_is_lost_on_its_way_doubles_nothing(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """The server has the rows, and wandb can't know: it sends them to the same places."""
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(ROWS[:50])
    server.wait_for(has_lines(server, len(steps_of(ROWS[:50]))))
    server.fail("applied-cut", "file_stream")
    sink.write(ROWS[50:200])
    server.wait_for(has_lines(server, len(steps_of(ROWS[:50])) + 1))
    kill_core()
    server.calm()

    run_on(online, clock, ROWS, START)

    check_whole(server, ROWS)


def test_a_kill_between_the_move_of_fragments_and_the_commit_leaves_no_hole(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """The old position speaks of fragments that are gone: new ones begin at the server's row."""
    server.fail("401")
    sink = make_sink(online, clock)
    write_from(sink, ROWS[:100], sink.open(START))
    position = sink.commit()
    sink.close()
    server.calm()
    go_on(online, clock, position)
    kill_core()
    assert superseded(online) == 1
    server.fail("401")

    again, first = go_on(online, clock, position)
    write_from(again, ROWS[:200], first)
    again.commit()
    again.close()

    unresolved = online.out_dir / "wandb-unresolved"
    assert [row["_step"] for row in written_history(unresolved)] == steps_of(ROWS[:200])
    server.calm()
    run_on(online, clock, ROWS, position)
    check_whole(server, ROWS)


def test_fragments_that_somebody_has_synced_are_not_sent_again(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """The server is asked: it has their rows, and gets only those behind."""
    server.fail("401")
    sink = make_sink(online, clock)
    write_from(sink, ROWS[:100], sink.open(START))
    position = sink.commit()
    sink.close()
    server.calm()
    command = sink.sync_command()
    assert command is not None
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, env=os.environ | {"PATH": tools}, check=True, timeout=60)
    assert the_run(server).steps() == steps_of(ROWS[:100])

    run_on(online, clock, ROWS, position)

    check_whole(server, ROWS)


def test_rows_that_show_up_while_wandb_starts_are_not_offered_to_be_synced(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """What the server showed was not all: what is written offline now, it may have already."""
    sink = make_sink(online, clock)
    sink.open(START)
    sink.write(ROWS[:100])
    sink.close()
    early = steps_of(ROWS[:50])
    stale = View(True, len(early), early[-1])
    link = LinkFile(online.out_dir / "wandb", RUN_ID)
    link.set(Link(last_row=stale.last_row, count=stale.row_count))
    teardown_wandb()

    again = WandbSink(online, clock, clock.pause, lambda _: stale)
    write_from(again, ROWS[:200], again.open(START))
    position = again.commit()
    again.close()

    assert again.sync_command() is None
    assert written_history(online.out_dir / "wandb-unresolved") != []
    clock.pause(700)
    run_on(online, clock, ROWS, position)
    check_whole(server, ROWS)


def test_a_torn_fragment_is_cut_so_that_it_can_be_synced(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """What was cut is kept beside. Torn, it would get no mark, and double at the second sync."""
    context = online._replace(options={"mode": "offline"})
    sink = make_sink(context, clock)
    write_from(sink, ROWS[:100], sink.open(START))
    sink.close()
    (path,) = offline.fragment_paths(online.out_dir / "wandb", RUN_ID)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])

    run_on(context, clock, ROWS, START)
    torn = next(path.parent.glob("*.torn-at-*"))
    assert path.read_bytes() + torn.read_bytes() == whole[:-5]
    command = make_sink(context, clock).sync_command()
    assert command is not None
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for _ in range(2):
        subprocess.run(
            command, shell=True, env=os.environ | {"PATH": tools}, check=True, timeout=60
        )

    check_whole(server, ROWS)


def test_tries_of_an_ended_run_add_no_fragment_each(
    online: SinkContext, clock: ManualClock, server: FakeWandb
) -> None:
    """A server that is away for a week is asked two thousand times. The last row, the run's
    end, has a summary and no history row that a file would tell of."""
    made = RowMaker()
    made.start()
    for step in range(20):
        made.metrics(step, {"train/loss": 1.0})
    made.append(RunFinished(status="finished", exit_code=0, summary={"best": 1.0}))
    server.fail("401")
    counts = []
    for _ in range(4):
        sink = make_sink(online, clock)
        write_from(sink, made.rows, sink.open(START))
        with pytest.raises(SinkBehind, match="refuses the API key"):
            sink.finish("finished", 0)
        sink.close()
        teardown_wandb()
        counts.append(len(offline.fragment_paths(online.out_dir / "wandb", RUN_ID)))

    server.calm()
    clock.pause(700)
    run_on(online, clock, made.rows, START)

    assert counts == [1, 1, 1, 1]
    assert LinkFile(online.out_dir / "wandb", RUN_ID).value.settled_row == 0
    check_whole(server, made.rows)
    assert the_run(server).states[-1] == "finished"
