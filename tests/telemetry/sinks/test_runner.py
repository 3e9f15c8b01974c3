"""The runner: each row exactly once, through a crash at any place."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from shared.events import encode_event, join_events
from shared.ids import StreamId
from telemetry.errors import EXIT_BACKLOG, EXIT_FAULT, EXIT_OK, EXIT_RUNNING, CommandError
from telemetry.journal.reader import Batch, JournalReader
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import read_json, write_json
from telemetry.run_dir import RunDir
from telemetry.sinks.base import SinkContext, SinkRejected, SinkUnavailable
from telemetry.sinks.cursor import Cursor
from telemetry.sinks.delivery import Pace
from telemetry.sinks.runner import Reporter, SinkJob, run_sink
from telemetry.sinks.skips import Skips
from tests.telemetry.sinks.lines_sink import Killed, LinesSink, Trouble, lines
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import metric


class Recorded:
    """A run on disk that grows as the test says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.writer = JournalWriter(directory / "journal", segment_max_bytes=20_000)
        self.info = {"run_id": "r", "name": "n", "state": "running"}
        write_json(directory / "run.json", self.info)

    def append(self, count: int) -> None:
        first = self.writer.next_row
        for at in range(first, first + count, 100):
            rows = range(at, min(at + 100, first + count))
            payload = join_events([encode_event(metric(row), 1, 1) for row in rows])
            self.writer.append(StreamId("r", "s1", "rank0"), at, len(rows), payload)
        self.writer.sync()

    def set_state(self, state: str, **more: object) -> None:
        self.info.update(state=state, **more)
        write_json(self.directory / "run.json", self.info)


class Reports(Reporter):
    """Remembers what the supervisor would have been told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.said: list[tuple[str, int, str]] = []

    def __call__(self, state: str, row: int, detail: str = "") -> None:
        self.said.append((state, row, detail))


@dataclass
class Bench:
    """A recorded run, and the sink that reads it."""

    run: Recorded
    job: SinkJob

    def go(
        self, trouble: Trouble | None = None, *, stop: threading.Event | None = None,
        report: Reporter | None = None,
    ) -> int:  # fmt: skip
        """One process of the sink, from its start to its end."""
        job = self.job_of(trouble or Trouble())
        return run_sink(job, stop or threading.Event(), report or Reporter(None))

    def job_of(self, trouble: Trouble) -> SinkJob:
        def make(_: str, context: SinkContext) -> LinesSink:
            self.sink = LinesSink(context, trouble)
            return self.sink

        return replace(self.job, make=make)

    def set_pace(self, **pace: float) -> None:
        self.job = replace(self.job, pace=self.job.pace._replace(**pace))

    @property
    def lines(self) -> list[int]:
        return lines(self.job.out_dir / "lines.jsonl")

    @property
    def cursor(self) -> dict[str, object]:
        return read_json(self.job.out_dir / "cursors" / "lines.json") or {}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    run = Recorded(tmp_path)
    pace = Pace(poll_s=0.01, write_rows=70)
    yield Bench(run, SinkJob("lines", tmp_path, tmp_path, True, {}, pace=pace))
    run.writer.close()


def following(bench: Bench, act: Callable[[threading.Event], None]) -> int:
    """Run the sink in a thread while the test acts; its exit code."""
    job = bench.job_of(Trouble())
    stop, codes = threading.Event(), []
    thread = threading.Thread(target=lambda: codes.append(run_sink(job, stop, Reporter(None))))
    thread.start()
    try:
        act(stop)
    finally:
        if thread.is_alive() and bench.run.info["state"] != "ended":
            stop.set()
        thread.join(30)
    assert not thread.is_alive()
    return codes[0]


def test_an_ended_run_is_carried_whole_and_finished(bench):
    """Every row once, in order; the sink hears how it ended."""
    bench.run.append(1000)
    bench.run.set_state("ended", status="failed", exit_code=3, endings=1)

    code = bench.go()

    assert code == EXIT_OK and bench.lines == list(range(1000))
    assert bench.sink.finished == [("failed", 3)] and bench.sink.closed == 1
    assert (bench.cursor["row"], bench.cursor["done"], bench.cursor["ending"]) == (1000, True, 1)


PLACES = [
    "open", "before write", "in write", "after write", "before commit", "after commit",
    "before finish", "after finish",
]  # fmt: skip


@pytest.mark.parametrize("commit_interval_s", [0.0, 60.0], ids=["each batch", "at the end"])
@pytest.mark.parametrize("place", PLACES)
def test_after_a_kill_at_any_place_each_row_is_there_once(bench, place, commit_interval_s):
    """Between write, commit and cursor; more than once in a row. Row 18."""
    bench.set_pace(commit_interval_s=commit_interval_s, read_bytes=8_000)
    bench.run.append(1000)
    bench.run.set_state("ended", status="finished")
    kills = 0
    for nth in (1, 2, 5):
        try:
            bench.go(Trouble(place, nth))
        except Killed:
            kills += 1

    code = bench.go()

    assert kills > 0 and code == EXIT_OK
    assert bench.lines == list(range(1000))


@pytest.mark.parametrize("step", ["write", "rename"])
def test_after_a_kill_in_the_cursors_own_write_each_row_is_there_once(bench, step):
    """The file of the cursor is the old one or the new one. Row 18."""
    bench.run.append(100)
    bench.run.set_state("ended", status="finished")

    def killed(*_: object) -> None:
        raise Killed(step)

    target = "shared.files.os.fsync" if step == "write" else "pathlib.Path.replace"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, killed)
        with pytest.raises(Killed):
            bench.go()

    bench.go()

    assert bench.lines == list(range(100))


class ShownSink(LinesSink):
    """Notes how many lines there were when it was told to show them."""

    shown: list[int]

    def flush(self) -> None:
        self.shown.append(len(lines(self.path)))


def test_rows_are_shown_at_once_and_committed_later(bench):
    """By a sink whose readers see rows that are not durable yet."""
    sinks: list[ShownSink] = []

    def make(_: str, context: SinkContext) -> ShownSink:
        sinks.append(ShownSink(context, Trouble()))
        sinks[0].shown = []
        return sinks[0]

    pace = Pace(poll_s=60.0, quick_poll_s=0.01, commit_interval_s=3600.0)
    job, stop, codes = replace(bench.job, make=make, pace=pace), threading.Event(), []
    bench.run.append(3)
    thread = threading.Thread(target=lambda: codes.append(run_sink(job, stop, Reporter(None))))
    thread.start()
    try:
        # While rows come it does not sleep for as long as without.
        for count in (3, 6, 9):
            wait_until(lambda n=count: sinks and sinks[0].shown[-1:] == [n])
            before = dict(bench.cursor)
            bench.run.append(3)
    finally:
        stop.set()
        thread.join(90)

    assert before.get("row", 0) == 0 and codes == [EXIT_OK]
    assert sinks[0].shown[:3] == [3, 6, 9] and bench.lines == list(range(12))


def test_a_running_run_is_followed_until_it_has_ended(bench):
    """What comes meanwhile is carried as it comes."""

    def act(stop: threading.Event) -> None:
        for count in (10, 200, 30):
            bench.run.append(count)
            expected = bench.run.writer.next_row
            wait_until(lambda n=expected: bench.job.out_dir.joinpath("lines.jsonl").exists()
                       and len(bench.lines) == n)  # fmt: skip
        bench.run.append(5)
        bench.run.set_state("ended", status="finished")

    code = following(bench, act)

    assert code == EXIT_OK and bench.lines == list(range(245))
    assert bench.cursor["done"] is True


def test_rows_that_come_with_the_end_right_after_a_look_are_not_left_out(bench, monkeypatch):
    """What run.json says is asked before the read that finds the end, never after it."""
    read = JournalReader.read

    def racing(reader: JournalReader) -> Batch:
        batch = read(reader)
        if batch.is_end and bench.run.info["state"] == "running":
            bench.run.append(5)
            bench.run.set_state("ended")
        return batch

    monkeypatch.setattr(JournalReader, "read", racing)
    bench.run.append(3)

    bench.go()

    assert bench.lines == list(range(8)) and bench.cursor["row"] == 8


def test_rows_that_come_right_before_a_stop_are_not_left_out(bench, monkeypatch):
    """A drain: the last rows were synced after a look that found the end, then came the
    order to stop. Whether to stop is asked before the read that finds the end."""
    read, stop = JournalReader.read, threading.Event()

    def racing(reader: JournalReader) -> Batch:
        batch = read(reader)
        if batch.is_end and not stop.is_set():
            bench.run.append(5)
            stop.set()
        return batch

    monkeypatch.setattr(JournalReader, "read", racing)
    bench.run.append(3)

    code = bench.go(stop=stop)

    assert code == EXIT_OK and bench.lines == list(range(8)) and bench.cursor["row"] == 8


def test_a_sink_is_not_done_while_nobody_can_tell_what_is_on_disk(bench):
    """Fault 44: the run has ended, its mark is damaged, and it is still open."""
    bench.run.append(3)
    mark = bench.run.directory / "journal" / "durable"
    mark.write_bytes(b"damaged")

    def act(stop: threading.Event) -> None:
        bench.run.set_state("ended", endings=1)
        wait_until(lambda: bench.job.out_dir.joinpath("cursors", "lines.lock").exists())
        assert not bench.cursor.get("done")
        bench.run.writer.close()

    assert following(bench, act) == EXIT_OK
    assert bench.lines == [0, 1, 2] and bench.cursor["done"] is True


def test_a_replay_behind_an_old_mark_carries_all_of_it(bench):
    """A power cut took the newest mark, and nobody has opened the journal since."""
    bench.job = SinkJob("lines", bench.run.directory, bench.run.directory / "out", False, {})
    bench.run.append(10)
    mark = bench.run.directory / "journal" / "durable"
    old = mark.read_bytes()
    bench.run.append(90)
    bench.run.writer.close()
    mark.write_bytes(old)

    code = bench.go()

    assert code == EXIT_OK and bench.lines == list(range(100))


def test_a_sink_waits_until_its_run_is_introduced(bench):
    """Without a name there is nothing to show."""
    del bench.run.info["name"]
    bench.run.set_state("running")

    def act(stop: threading.Event) -> None:
        bench.run.append(3)
        bench.run.set_state("ended", name="n")

    assert following(bench, act) == EXIT_OK
    assert bench.lines == [0, 1, 2]


def test_a_stop_while_waiting_for_the_run_ends_at_once(bench):
    """The sidecar ends before the run has begun."""
    del bench.run.info["name"]
    bench.run.set_state("running")
    stop = threading.Event()
    stop.set()

    assert bench.go(stop=stop) == EXIT_OK


def test_a_stop_drains_what_is_on_disk_and_commits_it(bench):
    """A follower comes to the end of what there is, and goes on another time."""
    bench.run.append(1000)
    stop = threading.Event()
    stop.set()

    code = bench.go(stop=stop)

    assert code == EXIT_OK and bench.lines == list(range(1000))
    assert (bench.cursor["row"], bench.cursor["done"]) == (1000, False)
    assert bench.sink.finished == [] and bench.sink.closed == 1


def test_a_stop_without_follow_comes_at_once_and_the_next_run_goes_on(bench):
    """Whoever interrupts a replay of a million rows does not wait for its end. Row 19."""
    bench.job = SinkJob("lines", bench.run.directory, bench.run.directory, False, {})
    bench.run.append(1000)
    stop = threading.Event()
    stop.set()

    code = bench.go(stop=stop)
    stopped_at = bench.cursor["row"]
    again = bench.go()

    assert code == EXIT_BACKLOG and 0 < stopped_at < 1000
    assert again == EXIT_OK and bench.lines == list(range(1000))


def test_a_reopened_run_goes_on_where_it_was_done(bench):
    """A new session came after its end. Row 33."""
    bench.run.append(10)
    bench.run.set_state("ended", endings=1)
    bench.go()
    bench.run.append(10)
    bench.run.set_state("ended", endings=2)

    bench.go()

    assert bench.lines == list(range(20))
    assert (bench.cursor["done"], bench.cursor["ending"]) == (True, 2)


def test_a_done_sink_carried_again_changes_nothing(bench):
    """Twice is as good as once. Row 19."""
    bench.run.append(10)
    bench.run.set_state("ended")
    bench.go()
    before = bench.cursor

    code = bench.go()

    assert code == EXIT_OK and bench.lines == list(range(10)) and bench.cursor == before


def test_a_journal_that_goes_on_without_follow_is_carried_to_its_present_end(bench):
    """A replay of a run that is still at work ends."""
    bench.job = SinkJob("lines", bench.run.directory, bench.run.directory / "out", False, {})
    bench.run.append(10)

    code = bench.go()

    assert code == EXIT_OK and bench.lines == list(range(10))


@pytest.mark.parametrize("place", ["open", "before write", "before commit", "before finish"])
@pytest.mark.parametrize(
    ("error", "code", "state"),
    [
        (SinkUnavailable("server is down"), EXIT_BACKLOG, "unavailable"),
        (SinkRejected("run was deleted"), EXIT_FAULT, "rejected"),
        (ImportError("No module named 'wandb'"), EXIT_BACKLOG, "unavailable"),
    ],
    ids=["unavailable", "rejected", "not installed"],
)
def test_an_error_of_the_sink_is_told_by_the_exit_code(bench, place, error, code, state):
    """The cursor has not moved, the sink was let go, and the supervisor knows why. Row 17."""
    bench.run.append(10)
    bench.run.set_state("ended")
    reports = Reports()

    returned = bench.go(Trouble(place, 1, error), report=reports)

    assert returned == code and bench.sink.closed == 1
    assert reports.said[-1] == (state, 0, str(error))
    assert bench.cursor == {}


def test_a_sink_that_is_at_work_already_is_not_started_twice(bench):
    """The second process says so, and ends with 5."""
    bench.run.append(1)
    with (
        Cursor(bench.job.out_dir, "lines", "r"),
        pytest.raises(CommandError, match="held by another process") as caught,
    ):
        bench.go()

    assert caught.value.exit_code == EXIT_RUNNING


def test_what_is_no_run_is_named(tmp_path, bench):
    """Without follow there is nothing to wait for."""
    bench.job = SinkJob("lines", tmp_path / "nothing", tmp_path, False, {})

    with pytest.raises(CommandError, match="there is no"):
        bench.go()


def test_the_supervisor_hears_of_every_call(bench):
    """Silence for a minute would mean that one hangs."""
    bench.run.append(1000)
    bench.run.set_state("ended")
    reports = Reports()

    bench.go(report=reports)

    states = [state for state, _, _ in reports.said]
    assert states[0] == "opening" and states[-2:] == ["finishing", "done"]
    written = [row for state, row, _ in reports.said if state == "running"]
    assert all(b - a <= 70 for a, b in itertools.pairwise(written))
    assert reports.said[-1][1] == 1000


def test_reports_are_json_lines_and_a_reader_that_is_gone_is_no_error():
    """The supervisor was killed: the sink hears of that by its stdin."""

    read_fd, write_fd = os.pipe()
    report = Reporter(write_fd)
    report("running", 5, 'with "quotes"\n')
    line = os.read(read_fd, 1000)
    os.close(read_fd)

    report("running", 6)
    report("running", 7)

    told = {"state": "running", "row": 5, "detail": 'with "quotes"\n', "skipped": 0}
    assert json.loads(line) == {**told, "said": False}
    assert line.count(b"\n") == 1
    os.close(write_fd)


def test_rows_that_are_stepped_over_at_the_end_leave_nothing_behind(bench):
    """The sink has not seen the last rows, and all of the run all the same."""
    bench.run.append(100)
    bench.run.set_state("ended", endings=1)
    (bench.run.directory / "cursors").mkdir()
    skips = Skips(RunDir(bench.run.directory).skips("lines"))
    for row in (50, 98, 99):
        skips.add(row, "crashed 2 times")

    code = bench.go()

    assert code == EXIT_OK and bench.lines == [r for r in range(98) if r != 50]
    assert (bench.cursor["row"], bench.cursor["done"]) == (100, True)


def test_a_cursor_of_another_journal_is_rejected_by_name(bench, tmp_path):
    """Tried again it would be the same: somebody has put this run where another one was."""
    bench.run.append(10)
    bench.go(stop=stopped())
    bench.run.writer.close()
    shutil.rmtree(bench.run.directory / "journal")
    bench.run = Recorded(bench.run.directory)
    bench.run.append(20)
    reports = Reports()

    code = bench.go(stop=stopped(), report=reports)

    assert code == EXIT_FAULT and bench.lines == list(range(10))
    assert reports.said[-1][0] == "rejected" and "another journal" in reports.said[-1][2]


def stopped() -> threading.Event:
    stop = threading.Event()
    stop.set()
    return stop


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_sink_that_waits_gives_a_sign_of_life_and_learns_that_it_shall_stop(bench, is_stopped):
    """A server may be asked for minutes; its supervisor would take the silence for a hang."""
    bench.run.append(1)
    bench.run.set_state("ended", endings=1)
    stop, report = threading.Event(), Reports()
    answers = []

    def make(_: str, context: SinkContext) -> LinesSink:
        if is_stopped:
            stop.set()
        answers.append(context.wait(0))
        return LinesSink(context, Trouble())

    run_sink(replace(bench.job, make=make), stop, report)

    assert answers == [is_stopped]
    assert ("waiting", 0, "") in report.said
