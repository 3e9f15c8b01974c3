"""Which rows a run in offline fragments writes, and when it begins a fragment: without wandb."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from telemetry.sinks.base import SinkContext, SinkRejected, SinkUnavailable
from telemetry.sinks.wandb import client, wandb_file
from telemetry.sinks.wandb.local import LocalPart, LocalRun, Spot, part_from
from telemetry.sinks.wandb.offline import Ledger
from telemetry.sinks.wandb.run_identity import JOURNAL
from telemetry.sinks.wandb.run_status import Ending
from telemetry.sinks.wandb.selection import Alert, Selected
from tests import wandb_contents

from .surroundings import RUN_ID, PausingClock
from .test_wandb_file import framed, history


class FileClient:
    """A wandb run that writes its records to the file at once, and remembers their order."""

    def __init__(self, file: Path, journal: str = "") -> None:
        self.file = file
        self.file.parent.mkdir(parents=True)
        self.said: list[str] = []
        self.refuses = False
        """True if wandb-core can't end the run any more."""
        first = _record()
        first.run.run_id = RUN_ID
        if journal:
            first.run.config.update.add(key=JOURNAL, value_json=json.dumps(journal))
        self._payloads = [first.SerializeToString()]
        self._write(_record())

    def send(self, row: int, values: Any) -> None:
        self.said.append(f"row {row}")
        self._write(history(row))

    def update_config(self, config: Any) -> None:
        self.said.append(f"config {config}")

    def update_summary(self, summary: Any) -> None:
        self.said.append(f"summary {summary}")

    def alert(self, alert: Any) -> None:
        self.said.append(f"alert {alert.text}")

    def finish(self, code: int) -> None:
        if self.refuses:
            raise SinkUnavailable("wandb-core has ended")
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

    def start(
        context: Any, mode: str, directory: Path, bare_for: str = "", limits: Any = None
    ) -> FileClient:
        name = f"offline-run-20260102_00000{len(begun)}-{RUN_ID}"
        begun.append(FileClient(directory / "wandb" / name / f"run-{RUN_ID}.wandb"))
        return begun[-1]

    monkeypatch.setattr(client, "start", start)
    return begun


def write(
    context: SinkContext, rows: Iterable[int], code: int | None = None, journal: str = ""
) -> Path:
    """Write the fragment of an earlier process; code is that of its end, None if it was killed."""
    place = context.out_dir / "wandb" / f"offline-run-20260101_000000-{RUN_ID}"
    earlier = FileClient(place / f"run-{RUN_ID}.wandb", journal)
    for row in rows:
        earlier.send(row, {})
    if code is not None:
        earlier.finish(code)
    return earlier.file


def rows_in(begun: list[FileClient]) -> list[list[int]]:
    return [[int(row["_step"]) for row in wandb_contents.history_rows(one.file)] for one in begun]


def opened(
    context: SinkContext, clock: PausingClock, part: LocalPart | None = None, **known: int
) -> LocalRun:
    run = LocalRun(context, ".", clock, clock.pause)
    run.open(Spot(), part, known.get("first_row", 0), known.get("settled_row", 0))
    return run


def carried(run: LocalRun, rows: Iterable[int]) -> None:
    for row in rows:
        run.take(row, Selected(history={"x": row}))


@pytest.mark.parametrize("spot", [0, 3, 5])
def test_a_run_goes_on_with_the_row_behind_the_last_one_in_its_files(
    context: SinkContext, clock: PausingClock, started: list[FileClient], spot: int
) -> None:
    """Not with that row again, and not one later; wherever the cursor stood."""
    write(context, range(5))
    run = opened(context, clock)
    carried(run, range(spot))
    part = run.commit(Spot(spot))
    run = opened(context, clock, part)

    carried(run, range(spot, 8))
    part = run.finish(Spot(8), Ending("finished", 0))

    assert rows_in(started) == [[5, 6, 7]]
    assert part.ledger.count == 8 and part.spot.row == 8


def test_a_run_that_was_finished_already_is_not_begun_again(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """The process died between its finish and its commit: nothing is missing in the files."""
    write(context, range(5), code=3)
    run = opened(context, clock)
    carried(run, range(5))

    run.finish(Spot(5), Ending("failed", 3))

    assert started == []


@pytest.mark.parametrize("code", [None, 0])
def test_a_run_that_ended_otherwise_is_finished_once_more(
    context: SinkContext, clock: PausingClock, started: list[FileClient], code: int | None
) -> None:
    """Killed before its end, or reopened and failed since: W&B shows the last exit code."""
    write(context, range(5), code=code)
    run = opened(context, clock)
    carried(run, range(5))

    run.finish(Spot(5), Ending("failed", 3))

    assert [wandb_file.exit_code(one.file) for one in started] == [3]


def test_a_run_without_rows_is_begun_to_be_finished(
    context: SinkContext,
    clock: PausingClock,
    started: list[FileClient],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """W&B shows it with its exit code and status. What follows a finish is no second one."""
    run = opened(context, clock)
    part = run.finish(Spot(2), Ending("failed", 1))
    started[0].refuses = True
    run.close()

    assert [wandb_file.exit_code(one.file) for one in started] == [1]
    assert part.spot.row == 2 and part.ledger.count == 0
    assert started[0].said == ["summary {'telemetry/run_status': 'failed'}"]
    assert caplog.text == ""


def test_a_rows_effects_are_written_before_the_row(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """A row in the file proves that all that was sent with it is there too."""
    run = opened(context, clock)

    run.take(0, Selected({"x": 1}, {"lr": 2}, {"best": 3}, Alert("WARN", "title", "text")))
    run.take(1, Selected(history={"x": 2}))

    (client_,) = started
    assert client_.said == ["config {'lr': 2}", "summary {'best': 3}", "alert text", "row 0",
                            "row 1"]  # fmt: skip


def test_a_row_that_the_files_hold_sends_no_effects_again(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """What was sent with it is in the file too; behind it nothing was settled."""
    write(context, range(2))
    run = opened(context, clock, settled_row=4)

    run.take(1, Selected({"x": 1}, {"lr": 2}))
    run.take(3, Selected(config={"lr": 3}))
    run.take(4, Selected(config={"lr": 4}))

    assert [one.said for one in started] == [["config {'lr': 4}"]]


def test_what_was_settled_in_files_that_are_gone_is_written(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """Without a file nothing of this run is anywhere."""
    run = opened(context, clock, settled_row=4)

    carried(run, range(5))

    assert rows_in(started) == [[0, 1, 2, 3, 4]]


def test_a_commit_covers_what_was_read_back_and_no_more(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """An effect without a row is known to be in the file only by a row behind it."""
    run = opened(context, clock)
    assert run.commit(Spot(0)) == LocalPart(Spot(0), Ledger(), ".", 0)
    carried(run, [0])
    assert run.commit(Spot(1)).spot.row == 1
    whole = started[0].file.read_bytes()

    run.take(1, Selected(config={"lr": 1}))
    assert run.commit(Spot(2)).spot.row == 1
    run.take(2, Selected(summary={"best": 1}))
    assert run.commit(Spot(3)).spot.row == 1
    carried(run, [3])
    complete = started[0].file.read_bytes()
    started[0].file.write_bytes(whole)  # wandb-core has not written it yet
    assert run.commit(Spot(4)).spot.row == 1
    started[0].file.write_bytes(complete)

    part = run.commit(Spot(4))
    assert part == LocalPart(Spot(4), Ledger().plus([0, 3]), ".", 0)


@pytest.mark.parametrize("selected", [Selected(config={"lr": 1}), Selected(summary={"best": 1})])
def test_an_effect_without_a_row_counts_when_a_row_behind_it_is_read_back(
    context: SinkContext, clock: PausingClock, started: list[FileClient], selected: Selected
) -> None:
    """The first of them as well as any later one."""
    run = opened(context, clock)
    carried(run, [0])
    run.take(1, selected)

    assert run.commit(Spot(2)) is None
    carried(run, [2])
    assert run.commit(Spot(3)).spot.row == 3


def test_rows_that_were_only_sent_are_not_committed(
    context: SinkContext,
    clock: PausingClock,
    started: list[FileClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """wandb-core has them in memory: no file holds any yet, from the first row on."""
    monkeypatch.setattr(FileClient, "_write", lambda *_: None)
    run = opened(context, clock)
    carried(run, [0])

    assert run.commit(Spot(1)) is None


def test_a_run_that_was_ended_without_rows_ends_again_behind_its_rows(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """It was reopened. What is running now is finished, whatever an older file says."""
    write(context, [], code=0)
    run = opened(context, clock)
    carried(run, range(2))

    run.finish(Spot(2), Ending("finished", 0))

    assert [wandb_file.exit_code(one.file) for one in started] == [0]


def test_a_finish_waits_until_the_file_is_written_to_its_end(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """wandb says that it has finished before wandb-core has written all."""
    run = opened(context, clock)
    carried(run, [0])
    started[0].finish = lambda code: None  # type: ignore[method-assign]

    with pytest.raises(SinkUnavailable, match="not written to its end"):
        run.finish(Spot(1), Ending("finished", 0))


def test_rows_found_in_the_files_can_be_committed_at_once(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """They were read and synced when the run was opened."""
    write(context, range(3))
    run = opened(context, clock)

    carried(run, range(3))

    assert run.commit(Spot(3)) == LocalPart(Spot(3), Ledger().plus(range(3)), ".", 0)
    assert started == []


def test_rows_that_the_server_has_come_into_no_file(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """And are not looked for in the files at the end."""
    run = opened(context, clock, first_row=3)

    carried(run, range(6))
    part = run.finish(Spot(6), Ending("finished", 0))

    assert rows_in(started) == [[3, 4, 5]] and part.ledger.count == 3


def test_files_with_rows_that_the_server_has_are_superseded(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """`wandb sync` would send those again; a part about these files is worth nothing then."""
    earlier = write(context, range(5))
    part = LocalPart(Spot(5), Ledger().plus(range(5)), ".", 0)
    run = LocalRun(context, ".", clock, clock.pause)

    spot = run.open(Spot(), part, 3, 5)
    carried(run, range(6))
    new = run.finish(Spot(6), Ending("finished", 0))

    assert spot == Spot() and not earlier.exists() and rows_in(started) == [[3, 4, 5]]
    assert (new.superseded, new.ledger.count) == (1, 3)


def test_files_that_begin_where_the_server_ends_stay(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """Nothing in them is on the server."""
    earlier = write(context, range(3, 5))

    carried(opened(context, clock, first_row=3), range(6))

    assert earlier.exists() and rows_in(started) == [[5]]


@pytest.mark.parametrize(("place", "superseded"), [("elsewhere", 0), (".", 1)])
def test_a_part_about_other_files_is_not_used(
    context: SinkContext, clock: PausingClock, place: str, superseded: int
) -> None:
    """The run is taken up at the spot that its caller knows."""
    write(context, range(5))
    ledger = Ledger().plus(range(5))
    run = LocalRun(context, ".", clock, clock.pause)

    assert run.open(Spot(2), LocalPart(Spot(5), ledger, place, superseded), 0) == Spot(2)
    assert run.open(Spot(2), LocalPart(Spot(5), ledger, ".", 0), 0) == Spot(5)


def test_rows_that_somebody_has_removed_are_said_and_not_written_again(
    context: SinkContext,
    clock: PausingClock,
    started: list[FileClient],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By hand, or by `wandb clean` after a sync: again would be twice on the server."""
    part = LocalPart(Spot(5), Ledger().plus(range(5)), ".", 0)
    run = opened(context, clock, part)

    carried(run, [5])
    new = run.finish(Spot(6), Ending("finished", 0))

    assert "0 rows before row 5" in caplog.text and "where 5 were written" in caplog.text
    assert rows_in(started) == [[5]] and new.ledger.count == 1


def test_rows_that_are_all_there_are_not_spoken_of(
    context: SinkContext, clock: PausingClock, caplog: pytest.LogCaptureFixture
) -> None:
    write(context, range(7))

    opened(context, clock, LocalPart(Spot(5), Ledger().plus(range(5)), ".", 0))

    assert caplog.text == ""


@pytest.mark.parametrize(("own", "theirs"), [("a", "a"), ("a", ""), ("", "b")])
def test_files_of_this_journal_or_of_one_unknown_are_taken(
    context: SinkContext, clock: PausingClock, own: str, theirs: str
) -> None:
    write(context, range(2), journal=theirs)

    run = opened(context._replace(journal=own), clock)

    carried(run, range(2))
    assert run.commit(Spot(2)).ledger.count == 2


def test_files_of_another_journal_are_refused_by_name(
    context: SinkContext, clock: PausingClock
) -> None:
    """Its row 1 is another event."""
    write(context, range(2), journal="b")

    with pytest.raises(SinkRejected, match="journal b, and this is journal a"):
        opened(context._replace(journal="a"), clock)


def test_files_that_another_process_holds_open_are_not_read(
    context: SinkContext, clock: PausingClock
) -> None:
    """A stopped wandb-core could still write rows."""
    file = write(context, range(2))
    hold = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline()

        with pytest.raises(SinkUnavailable, match=str(holder.pid)):
            opened(context, clock)


def test_a_torn_end_is_cut_and_kept_beside(context: SinkContext, clock: PausingClock) -> None:
    """Before the run goes on: `wandb sync` would fail at it."""
    file = write(context, range(2))
    whole = file.read_bytes()
    file.write_bytes(whole + b"torn")

    opened(context, clock)

    assert file.read_bytes() == whole
    assert file.with_suffix(f".torn-at-{len(whole)}").read_bytes() == b"torn"


def test_reading_long_files_tells_the_supervisor_that_it_goes_on(
    context: SinkContext, clock: PausingClock
) -> None:
    """It reports, and waits for nothing."""
    waits: list[float] = []
    write(context, range(2))

    opened(context._replace(wait=lambda seconds: bool(waits.append(seconds))), clock)

    assert waits == [0]


def test_a_close_ends_the_fragment_and_not_the_run(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """The next process goes on in another one; closing twice is no error."""
    run = opened(context, clock)
    run.close()
    carried(run, range(2))

    run.close()
    run.close()
    carried(opened(context, clock), range(3))

    assert wandb_file.exit_code(started[0].file) == 0 and rows_in(started) == [[0, 1], [2]]


def test_a_close_that_wandb_refuses_is_only_said(
    context: SinkContext,
    clock: PausingClock,
    started: list[FileClient],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing was promised for what is not committed."""
    run = opened(context, clock)
    carried(run, range(2))
    started[0].refuses = True

    run.close()

    assert "closed unclean: wandb-core has ended" in caplog.text


def test_a_close_waits_until_the_file_is_written_to_its_end(
    context: SinkContext, clock: PausingClock, started: list[FileClient]
) -> None:
    """The next process, which may begin at once, reads it."""
    run = opened(context, clock)
    carried(run, [0])
    before_ns = clock.monotonic_ns()
    whole = started[0].file.read_bytes()
    started[0].finish = lambda code: started[0].file.write_bytes(whole)  # type: ignore[method-assign]

    run.close()

    assert clock.monotonic_ns() > before_ns


def test_a_part_is_read_from_a_cursor_as_it_was_written() -> None:
    """A cursor of before has none."""
    part = LocalPart(Spot(5), Ledger(3, 4), ".", 1)

    assert part_from(msgspec.to_builtins(part)) == part and part_from(None) is None
    with pytest.raises(ValueError):
        part_from({"spot": 5})
