"""The sink offline, with the real wandb: what its files hold after any ending."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb

from telemetry.sinks.base import START, Position, SinkContext, SinkRejected, SinkUnavailable
from telemetry.sinks.wandb import WandbSink, wandb_file
from telemetry.sinks.wandb.offline import fragment_paths
from telemetry.sinks.wandb.run_identity import REFUSED
from telemetry.sinks.wandb.timeouts import TIMEOUTS, Timeouts
from telemetry.summary import unsynced_wandb_runs
from tests import wandb_contents

from .journal import expected_history, mixed_journal, steps, written_history
from .surroundings import RUN_ID, PausingClock, make_context, teardown_wandb

KEY = "0123456789abcdef0123456789abcdef01234567"


def run_whole(context: SinkContext, rows: list[Any], position: Position = START) -> Position:
    """One sink process from a position to the end of the run."""
    sink = WandbSink(context)
    first = sink.open(position)
    sink.write([row for row in rows if row.row >= first])
    final = sink.finish("finished", 0)
    sink.close()
    return final


def begun(context: SinkContext, rows: list[Any], timeouts: Timeouts = TIMEOUTS) -> WandbSink:
    """A sink process that was given these rows, from the first on."""
    sink = WandbSink(context, timeouts=timeouts)
    sink.open(START)
    sink.write(rows)
    return sink


def stopped_after(context: SinkContext, rows: list[Any]) -> Position:
    """A sink process that was stopped when these rows were safe; the position it leaves."""
    sink = begun(context, rows)
    position = commit_until(sink, len(rows))
    sink.close()
    return position


def commit_until(sink: WandbSink, row: int) -> Position:
    """Commit until the position is there: wandb-core flushes once a second."""
    deadline = time.monotonic() + 20
    while (position := sink.commit()).row < row:
        assert time.monotonic() < deadline, f"stuck at {position.row} of {row}"
    return position


def fragments(context: SinkContext) -> list[Path]:
    return fragment_paths(context.out_dir / "wandb", RUN_ID)


def wandb_cores() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.name() == "wandb-core"]


def test_what_is_read_back_is_what_the_policy_selects(context: SinkContext) -> None:
    """Every value, `_step` and `_timestamp` of every row; config, summary, exit code."""
    rows = mixed_journal(400)

    final = run_whole(context, rows)

    assert final.row == 400
    assert written_history(context.out_dir) == expected_history(rows)
    (path,) = fragments(context)
    assert wandb_contents.config(path) == {
        "lr": 0.1,
        "model": {"layers": 2},
        "parameters": 2**40,
        "dims": [1, 2],
        "telemetry/given": {"tags": ["tiny", "t" * 80]},
    }
    assert wandb_contents.summary(path)["val/best"] == 1.5
    assert wandb_file.exit_code(path) == 0


def test_a_replay_of_what_is_written_doubles_nothing(context: SinkContext) -> None:
    """From the start or the final position, no row and no fragment is added. Fault 19."""
    rows = mixed_journal(100)
    final = run_whole(context, rows)

    again = [run_whole(context, rows), run_whole(context, rows, final)]

    assert [position.row for position in again] == [100, 100]
    assert len(fragments(context)) == 1
    assert written_history(context.out_dir) == expected_history(rows)


def test_a_run_taken_up_again_goes_on_in_a_new_fragment(context: SinkContext) -> None:
    """The position is JSON; the windows open at it go on. The old fragment stays as it was."""
    rows = mixed_journal(200)
    position = stopped_after(context, rows[:90])
    before = {path: path.read_bytes() for path in fragments(context)}

    run_whole(context, rows, Position(90, json.loads(json.dumps(position.state))))

    assert len(fragments(context)) == 2
    assert {path: path.read_bytes() for path in before} == before
    assert written_history(context.out_dir) == expected_history(rows)


def test_a_position_names_only_rows_that_are_in_the_file(context: SinkContext) -> None:
    """A commit right after a write may be older than it, and catches up by itself."""
    rows = mixed_journal(60)
    sink = WandbSink(context)
    sink.open(START)

    for end in range(5, 60, 5):
        sink.write(rows[end - 5 : end])
        row = sink.commit().row
        in_file = written_history(context.out_dir)
        assert steps(in_file) >= [s for s in steps(expected_history(rows)) if s < row]

    assert commit_until(sink, 55).row == 55
    sink.close()


def test_an_effect_without_a_row_holds_the_position_until_a_row_follows(
    context: SinkContext,
) -> None:
    """Config sent last could be lost with the process: a restart has to see it again."""
    rows = mixed_journal(10)
    sink = begun(context, rows[:2])

    assert sink.commit().row == 0
    sink.write(rows[2:3])
    assert commit_until(sink, 3).row == 3
    sink.close()


def test_nothing_is_lost_with_a_killed_wandb_core(context: SinkContext) -> None:
    """The sink says that wandb is gone; the next one sends what is not in the file. Fault 17."""
    rows = mixed_journal(3000)
    sink = begun(context, rows[:1000])
    position = sink.commit()
    (core,) = wandb_cores()
    core.kill()
    core.wait()

    with pytest.raises(SinkUnavailable):
        for row in rows[1000:]:
            sink.write([row])
    sink.close()
    in_file = len(written_history(context.out_dir))
    teardown_wandb()
    run_whole(context, rows, position)

    assert in_file < len(expected_history(rows[:1000]))
    assert written_history(context.out_dir) == expected_history(rows)


def test_a_stopped_wandb_core_of_before_is_not_written_beside(context: SinkContext) -> None:
    """Woken up, it would write rows that a new one has sent by then. Fault 17."""
    rows = mixed_journal(300)
    sink = begun(context, rows[:100])
    (core,) = wandb_cores()
    core.suspend()
    clock = PausingClock()

    with pytest.raises(SinkUnavailable, match=str(core.pid)):
        WandbSink(context, clock, clock.pause).open(START)

    core.kill()
    core.wait()
    sink.close()
    teardown_wandb()
    run_whole(context, rows)
    assert written_history(context.out_dir) == expected_history(rows)


def test_a_full_disk_is_noticed_and_made_up_for(context: SinkContext) -> None:
    """wandb-core says nothing and finishes; the file shows it. Fault 11."""
    rows = mixed_journal(600)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # wandb-core inherits the limit, and takes it for a disk of that size.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    sink = begun(context, rows[:1], Timeouts(written_s=1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sink.write(rows[1:])

    with pytest.raises(SinkUnavailable, match=r"damaged|not written to its end"):
        sink.finish("finished", 0)
    sink.close()

    teardown_wandb()
    assert len(written_history(context.out_dir)) < len(expected_history(rows))
    run_whole(context, rows)
    assert written_history(context.out_dir) == expected_history(rows)


def test_rows_behind_damage_are_written_again(context: SinkContext) -> None:
    """As `wandb sync` can't read past the damage, they are in no file that counts."""
    rows = mixed_journal(300)
    run_whole(context, rows)
    (path,) = fragments(context)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert written_history(context.out_dir) != expected_history(rows)

    run_whole(context, rows)

    assert len(fragments(context)) == 2
    assert written_history(context.out_dir) == expected_history(rows)


def test_fragments_taken_away_are_not_written_again(
    context: SinkContext, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever synced and removed them would get every row twice. It is said once."""
    rows = mixed_journal(200)
    position = stopped_after(context, rows[:100])
    shutil.rmtree(fragments(context)[0].parent)

    with caplog.at_level(logging.WARNING):
        run_whole(context, rows, position)

    assert "0 rows before row 100" in caplog.text
    found = written_history(context.out_dir)
    assert found == [row for row in expected_history(rows) if row["_step"] >= 100]


def test_a_row_that_wandb_has_swallowed_is_noticed_at_the_end(
    context: SinkContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = mixed_journal(50)
    real = wandb.Run.log
    monkeypatch.setattr(
        wandb.Run,
        "log",
        lambda self, data, step, commit: None if step == 20 else real(self, data, step, commit),
    )
    sink = begun(context, rows)

    with pytest.raises(SinkUnavailable, match="where 20 was sent"):
        sink.finish("finished", 0)
    sink.close()


def test_no_key_gets_into_any_file(context: SinkContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither wandb's logs nor its settings hold it. Fault 31."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)

    run_whole(context, mixed_journal(20))

    files = [path for path in context.out_dir.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def refuse(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """From here on wandb refuses every run of which it is told this."""
    real = wandb.init

    def init(**given: Any) -> Any:
        if given.get(said):
            raise wandb.errors.UsageError(f"Invalid {said}")
        return real(**given)

    monkeypatch.setattr(wandb, "init", init)


def test_a_run_whose_names_wandb_refuses_goes_there_under_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that we do not know of costs the names, not the rows."""
    refuse(monkeypatch, "project")
    context = make_context(tmp_path / "run")
    rows = mixed_journal(30)

    run_whole(context, rows)

    assert written_history(context.out_dir) == expected_history(rows)
    assert "Invalid project" in wandb_contents.config(fragments(context)[0])[REFUSED]


def test_a_run_that_wandb_refuses_altogether_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trying again would not make it any better."""
    refuse(monkeypatch, "id")
    sink = WandbSink(make_context(tmp_path / "run"))
    sink.open(START)

    with pytest.raises(SinkRejected, match="Invalid id"):
        sink.write(mixed_journal(3))


def test_a_failed_run_says_so(context: SinkContext) -> None:
    """Also where nobody could tell an exit code, as for a lost run."""
    sink = begun(context, mixed_journal(10))
    sink.finish("lost", None)

    assert wandb_file.exit_code(fragments(context)[0]) == 1


def test_every_fragment_is_to_be_synced_in_order(context: SinkContext) -> None:
    """None of an earlier process is left out."""
    rows = mixed_journal(100)
    assert unsynced_wandb_runs(context.out_dir) == []
    position = stopped_after(context, rows[:50])
    run_whole(context, rows, position)

    assert unsynced_wandb_runs(context.out_dir) == [path.parent for path in fragments(context)]
    assert len(fragments(context)) == 2


def test_another_run_in_the_same_directory_is_left_alone(context: SinkContext) -> None:
    """A replay may put many runs into one directory."""
    other = context._replace(run_id="other-" + RUN_ID)
    rows = mixed_journal(30)

    run_whole(other, rows)
    run_whole(context, rows)

    assert len(fragments(context)) == 1
    assert written_history(context.out_dir) == expected_history(rows)


def test_the_clock_set_back_between_fragments_changes_no_order(
    context: SinkContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb names fragments by local time; rows order them. Fault 34."""
    rows = mixed_journal(200)
    position = stopped_after(context, rows[:100])
    old = fragments(context)[0].parent
    later = old.with_name(f"offline-run-20991231_235959-{RUN_ID}")
    # What the name would have been before the clock was set back.
    old.rename(later)

    run_whole(context, rows, position)

    assert [path.parent == later for path in fragments(context)] == [False, True]
    assert written_history(context.out_dir) == expected_history(rows)
