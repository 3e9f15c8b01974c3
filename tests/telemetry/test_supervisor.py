"""The supervisor: sinks fail alone, and each is given what it needs to come back."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from telemetry.commands.inspect import inspect
from telemetry.http import Health, StatusServer
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json
from telemetry.supervise.sink_process import Pauses
from telemetry.supervise.supervisor import Supervisor
from telemetry.watch.facts import SinkStatus
from tests.fakes import ManualClock
from tests.telemetry import supervised
from tests.telemetry.sidecar_process import http_get
from tests.telemetry.waiting import wait_until

SECOND_NS = 1_000_000_000


def command(sink: str, run_dir: Path) -> list[str]:
    return [sys.executable, "-S", supervised.__file__, sink, str(run_dir)]


class Place:
    """Runs on disk, and what watches over their sinks. Time stands still."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ManualClock()
        self.made: list[Supervisor] = []

    def run(self, mode: str, run_id: str = "r", state: str = "running", **info: object) -> Path:
        run_dir = self.directory / run_id
        run_dir.mkdir(exist_ok=True)
        (run_dir / "mode").write_text(mode)
        write_json(run_dir / "run.json", {"name": "n", "state": state, **info})
        return run_dir

    def watch(self, *sinks: str, max_processes: int = 16) -> Supervisor:
        supervisor = Supervisor(
            self.directory, sinks or ("lines",), self.clock,
            max_processes=max_processes, sink_timeout_s=60, command=command,
            pauses=Pauses(poll_s=0.01),
        )  # fmt: skip
        self.made.append(supervisor)
        supervisor.start()
        return supervisor


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    for supervisor in place.made:
        supervisor.end(0)


def starts(run_dir: Path) -> list[str]:
    path = run_dir / "starts"
    return path.read_text().splitlines() if path.exists() else []


def status(supervisor: Supervisor, run_id: str = "r") -> SinkStatus | None:
    found = [s for s in supervisor.snapshot() if s.run_id == run_id]
    return found[0] if found else None


def await_status(supervisor: Supervisor, is_so: Callable[[SinkStatus], bool]) -> SinkStatus:
    def seen() -> SinkStatus | None:
        found = status(supervisor)
        return found if found is not None and is_so(found) else None

    return wait_until(seen)


def turns(supervisor: Supervisor, count: int = 10) -> None:
    """Wait until the supervisor has looked so many times."""
    for _ in range(count):
        before = supervisor.snapshot()
        wait_until(lambda before=before: supervisor.snapshot() is not before)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ticking(place: Place, supervisor: Supervisor, timeout_s: float) -> None:
    """End the supervisor by a clock that goes: here it has to wait for a process."""
    began_ns, mono_ns = time.monotonic_ns(), place.clock.mono
    place.clock.monotonic_ns = lambda: mono_ns + time.monotonic_ns() - began_ns
    supervisor.end(timeout_s)


def test_a_sink_that_hangs_is_killed_with_what_it_started_and_started_again(place):
    """wandb-core has a session of its own: it has to be found. Row 17."""
    run_dir = place.run("hang")
    supervisor = place.watch()
    await_status(supervisor, lambda s: s.state == "running")
    child = int((run_dir / "children").read_text())
    place.clock.mono += 59 * SECOND_NS
    turns(supervisor)
    is_patient = is_alive(child)

    place.clock.mono += 2 * SECOND_NS
    killed = await_status(supervisor, lambda s: s.state == "killed")
    place.run("follow")
    place.clock.mono += SECOND_NS
    again = await_status(supervisor, lambda s: s.state == "running")

    assert is_patient and "hung for 61 s" in killed.detail
    wait_until(lambda: not is_alive(child))
    assert again.restarts == 1 and starts(run_dir) == ["lines", "lines"]


def test_what_a_crashed_sink_started_does_not_stay(place):
    """It would go on writing beside the next one. Row 17."""
    run_dir = place.run("die with a child")
    supervisor = place.watch()
    await_status(supervisor, lambda s: s.state == "running")
    child = int((run_dir / "children").read_text())

    os.kill(int((run_dir / "lines.pid").read_text()), signal.SIGKILL)

    await_status(supervisor, lambda s: s.state == "crashed")
    wait_until(lambda: not is_alive(child))


def test_one_that_crashes_again_and_again_is_started_less_and_less_often(place):
    """Jittered, doubling, and bounded. Row 15."""
    run_dir = place.run("crash")
    supervisor = place.watch()
    for failures in range(1, 12):
        crashed = await_status(supervisor, lambda s, n=failures: s.restarts == n)
        least_s, most_s = min(2 ** (failures - 1), 300) / 2, min(2 ** (failures - 1), 300)
        place.clock.mono += int(least_s * SECOND_NS) - 1
        turns(supervisor, 3)
        assert len(starts(run_dir)) == failures, "too early"
        place.clock.mono += int((most_s - least_s) * SECOND_NS) + 1

    assert crashed.state == "crashed" and crashed.detail == "exit code 1"


def test_one_that_can_not_be_had_now_is_tried_again(place):
    """There is no give-up time. Row 15."""
    run_dir = place.run("unavailable")
    supervisor = place.watch()
    unavailable = await_status(supervisor, lambda s: s.restarts == 1)

    place.run("follow")
    place.clock.mono += SECOND_NS
    await_status(supervisor, lambda s: s.state == "running")

    assert unavailable.state == "unavailable" and unavailable.detail == "later"
    assert len(starts(run_dir)) == 2


def test_many_ended_runs_ask_one_at_a_time_for_a_sink_that_can_not_be_had(place):
    """A server that is away does not get, or cost, a process a run at each try. Row 15."""
    runs = [place.run("unavailable", run_id=f"r{i}", state="ended", endings=1) for i in range(5)]
    supervisor = place.watch()
    wait_until(lambda: all(s.restarts for s in supervisor.snapshot()) and supervisor.snapshot())

    for _ in range(10):
        place.clock.mono += 30 * SECOND_NS
        turns(supervisor, 8)
        wait_until(lambda: all(s.state == "unavailable" for s in supervisor.snapshot()))
    tries = sum(len(starts(run_dir)) for run_dir in runs)

    # Each for itself, with back-off, would have made five times as many.
    assert 5 < tries <= 5 + 10


def test_inspect_tells_of_a_crash_loop(place, capsys):
    """While it goes on, and from outside the sidecar."""
    run_dir = place.run("crash")
    JournalWriter(run_dir / "journal").close()
    supervisor = place.watch()
    await_status(supervisor, lambda s: s.restarts == 1)
    place.clock.mono += SECOND_NS
    await_status(supervisor, lambda s: s.restarts == 2)
    turns(supervisor, 2)

    inspect(run_dir)

    assert "2 restarts, crashed: exit code 1" in capsys.readouterr().out


def test_metrics_tell_of_a_crash_loop(place):
    """Something to alert on: how often it was started again, and how it is now."""
    place.run("crash")
    supervisor = place.watch()
    await_status(supervisor, lambda s: s.restarts == 1)
    place.clock.mono += SECOND_NS
    await_status(supervisor, lambda s: s.restarts == 2)
    status = StatusServer("127.0.0.1:0", lambda: Health(sinks=supervisor.snapshot()))

    _, metrics = http_get(status.address, "/metrics")
    status.close()

    assert 'telemetry_sink_restarts_total{run_id="r",sink="lines"} 2.0' in metrics
    assert 'telemetry_sink_state{run_id="r",sink="lines",state="crashed"} 1.0' in metrics


def test_one_that_is_rejected_is_not_tried_again(place):
    """It is shown, and counts as not done."""
    run_dir = place.run("reject")
    supervisor = place.watch()
    await_status(supervisor, lambda s: s.state == "rejected")

    place.clock.mono += 10_000 * SECOND_NS
    turns(supervisor)

    assert starts(run_dir) == ["lines"]
    assert supervisor.backlog == {("r", "lines")}


def test_a_sink_that_is_done_with_an_ended_run_is_not_started_again(place):
    """Not by this sidecar, and not by the next."""
    run_dir = place.run("done", state="ended", endings=1)
    first = place.watch()
    wait_until(lambda: starts(run_dir) and not first.backlog)
    turns(first)
    first.end(0)
    second = place.watch()

    turns(second)

    assert starts(run_dir) == ["lines"] and not second.backlog


def test_a_sink_that_is_done_is_started_again_when_its_run_ends_once_more(place):
    """Late events came from a spool while nobody looked."""
    run_dir = place.run("done", state="ended", endings=1)
    supervisor = place.watch()
    wait_until(lambda: starts(run_dir) and not supervisor.backlog)

    place.run("done", state="ended", endings=2)
    wait_until(lambda: len(starts(run_dir)) == 2 and not supervisor.backlog)
    turns(supervisor)

    assert len(starts(run_dir)) == 2


def test_disabled_wandb_starts_no_process(place):
    """Other sinks of the run are as ever."""
    run_dir = place.run("follow", wandb_mode="disabled")
    supervisor = place.watch("wandb", "lines")

    await_status(supervisor, lambda s: s.state == "running")
    turns(supervisor)

    assert starts(run_dir) == ["lines"]
    assert supervisor.backlog == {("r", "lines")}


def test_wandb_waits_for_the_end_of_a_run_that_nobody_introduced(place):
    """A project and a mode that come later could not be taken back; other sinks need neither."""
    run_dir = place.run("follow", is_introduced=False)
    supervisor = place.watch("wandb", "lines")
    await_status(supervisor, lambda s: s.state == "running")
    turns(supervisor)
    before = starts(run_dir)

    place.run("follow", is_introduced=False, state="ended", endings=1)
    wait_until(lambda: "wandb" in starts(run_dir))

    assert before == ["lines"]


def test_a_run_whose_directory_is_not_what_it_was_costs_no_other_run(place):
    """A file lies where its cursors should be: it backs off, alone."""
    bad = place.run("follow", "a")
    (bad / "cursors").write_text("not a directory")
    place.run("follow", "b")
    supervisor = place.watch()

    wait_until(lambda: (s := status(supervisor, "b")) and s.state == "running")
    found = wait_until(lambda: status(supervisor, "a"))

    assert found.state == "crashed" and "can't be started" in found.detail


def test_what_a_sink_died_of_is_told_in_words(place):
    """A signal by its name."""
    run_dir = place.run("die with a child")
    supervisor = place.watch()
    await_status(supervisor, lambda s: s.state == "running")

    os.kill(int((run_dir / "lines.pid").read_text()), signal.SIGSEGV)

    assert await_status(supervisor, lambda s: s.state == "crashed").detail == "ended by SIGSEGV"


def test_the_same_trouble_is_said_once_and_another_one_again(place, caplog):
    """However often it is tried: a server may be away for days."""
    place.run("unavailable")
    supervisor = place.watch()
    for failures in range(1, 7):
        await_status(supervisor, lambda s, n=failures: s.restarts == n)
        place.clock.mono += 300 * SECOND_NS
    place.run("crash")
    await_status(supervisor, lambda s: s.state == "crashed")

    said = [r.getMessage() for r in caplog.records if "sink=lines" in r.getMessage()]
    assert [("later" in text, "exit code 1" in text) for text in said] == [
        (True, False),
        (False, True),
    ]


def test_a_run_that_nobody_introduced_has_no_sink(place):
    """There is nothing to call it by."""
    run_dir = place.run("follow")
    write_json(run_dir / "run.json", {"state": "running"})
    supervisor = place.watch()

    turns(supervisor)

    assert starts(run_dir) == []


def test_there_are_never_more_processes_than_allowed_and_running_runs_come_first(place):
    """Old runs wait until there is room."""
    old = [place.run("follow", f"a{n}", state="ended") for n in range(3)]
    running = place.run("follow", "z")
    supervisor = place.watch(max_processes=2)

    wait_until(lambda: len([s for s in supervisor.snapshot() if s.state == "running"]) == 2)
    turns(supervisor)

    assert len(starts(running)) == 1
    assert sum(len(starts(run_dir)) for run_dir in old) == 1


def test_sinks_rest_while_there_is_no_room_and_go_on_afterwards(place):
    """Some write corrupt files on a full disk. Row 11."""
    run_dir = place.run("follow")
    supervisor = place.watch()
    await_status(supervisor, lambda s: s.state == "running")
    supervisor.pause(True)
    paused = await_status(supervisor, lambda s: s.state == "killed")
    place.clock.mono += 10 * SECOND_NS
    turns(supervisor)
    at_rest = len(starts(run_dir))

    supervisor.pause(False)

    await_status(supervisor, lambda s: s.state == "running")
    assert at_rest == 1 and "no room" in paused.detail and len(starts(run_dir)) == 2


def test_at_the_end_a_running_runs_sink_is_asked_to_stop(place):
    """It brings itself up to date first."""
    run_dir = place.run("follow")
    supervisor = place.watch()
    await_status(supervisor, lambda s: s.state == "running")
    ticking(place, supervisor, 20)

    assert (run_dir / "stopped").exists()


def test_a_sink_that_has_just_started_is_not_asked_before_it_can_hear(place):
    """The signal would kill it before its first row."""
    run_dir = place.run("follow")
    supervisor = place.watch()
    wait_until(lambda: status(supervisor) is not None)

    ticking(place, supervisor, 20)

    assert (run_dir / "stopped").exists() and len(starts(run_dir)) == 1


def test_a_kill_is_said_once(place, caplog):
    """Why it was killed; that it then ended is no news."""
    place.run("hang")
    supervisor = place.watch()
    await_status(supervisor, lambda s: s.state == "running")
    place.clock.mono += 61 * SECOND_NS
    await_status(supervisor, lambda s: s.restarts == 1)

    said = [r.getMessage() for r in caplog.records if "sink=lines" in r.getMessage()]
    assert len(said) == 1 and "killed: " in said[0]


def test_a_sink_that_does_not_stop_in_time_is_killed(place):
    """The grace time is all there is. Row 20."""
    run_dir = place.run("hang")
    supervisor = place.watch()
    await_status(supervisor, lambda s: s.state == "running")
    sink, child = (int((run_dir / name).read_text()) for name in ("lines.pid", "children"))

    supervisor.end(0)

    assert supervisor.backlog == {("r", "lines")}
    wait_until(lambda: not is_alive(sink) and not is_alive(child))


def test_an_end_without_a_start_and_a_second_end_are_harmless(place):
    """However far the service came."""
    supervisor = Supervisor(
        place.directory, ("lines",), place.clock, max_processes=1, sink_timeout_s=1
    )

    supervisor.end(0)
    supervisor.end(0)
