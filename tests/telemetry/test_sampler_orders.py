"""The sidecar tells its sampler which training processes to read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from telemetry.hardware.watched import Watched, WatchList
from telemetry.run_dir import Process
from telemetry.supervise import sampler_process
from telemetry.supervise.sampler_process import SamplerProcess, processes_on
from tests.fakes import ManualClock
from tests.telemetry.wire_client import Producer, Station, finished, started

HERE = Watched("r1", "rank0", 12, 17 * 10**17)
ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


def test_only_processes_of_this_host_whose_start_is_known_are_watched():
    """A pid of another machine, or without a start, may be anybody's here."""
    run = SimpleNamespace(
        run_id="r1",
        processes={
            "rank1": Process("node 2", 13, 5),
            "rank0": Process("node 1", 12, 17 * 10**17),
            "rank2": Process("node 1", 14, 0),
        },
    )

    assert processes_on("node-1", [run]) == [HERE]


def three_ranks(station):
    """A run of three ranks on this machine, of which the second has finished."""
    ranks = [Producer(station, f"s{n}", source=f"rank{n}", peer=b"p%d" % n) for n in range(3)]
    for number, rank in enumerate(ranks):
        rank.hello()
        rank.emit(started(host="node 1", rank=number, pid=12 + number, process_start_ns=5))
    ranks[1].emit(finished())
    station.ingest.commit()


def watched_by(station):
    return [(w.source, w.pid) for w in processes_on("node-1", station.runs)]


def test_after_a_restart_every_rank_that_has_not_finished_is_watched(tmp_path):
    """run.json has them all, and the journal what came after it."""
    station = Station(tmp_path, ManualClock())
    three_ranks(station)
    first = watched_by(station)

    station = station.restarted()

    assert watched_by(station) == first == [("rank0", 12), ("rank2", 14)]


def test_a_rank_of_which_run_json_has_not_heard_is_learned_from_the_journal(tmp_path):
    """The sidecar was killed between the sync and the writing of run.json."""
    station = Station(tmp_path, ManualClock())
    three_ranks(station)
    file = tmp_path / "runs/r/run.json"
    before = file.read_bytes()
    late = Producer(station, "s3", source="rank3", peer=b"p3")
    late.hello()
    late.emit(started(host="node 1", rank=3, pid=15, process_start_ns=5))
    station.ingest.commit()
    file.write_bytes(before)

    station = station.restarted()

    assert watched_by(station) == [("rank0", 12), ("rank2", 14), ("rank3", 15)]


def test_a_run_json_of_an_older_version_still_tells_of_rank_0(tmp_path):
    """It has no field for the others."""
    station = Station(tmp_path, ManualClock())
    three_ranks(station)
    file = tmp_path / "runs/r/run.json"
    values = json.loads(file.read_text())
    del values["processes"]
    file.write_text(json.dumps(values))

    assert watched_by(station.restarted()) == [("rank0", 12)]


@pytest.fixture
def sampler(monkeypatch, tmp_path):
    """A sampler process that writes what it is told into a file."""
    made = []
    output = (tmp_path / "told").open("wb")

    def start(*arguments, **options):
        made.append(subprocess.Popen([sys.executable, "-c", ECHO], stdout=output, **options))
        return made[-1]

    fake = SimpleNamespace(Popen=start, PIPE=subprocess.PIPE, TimeoutExpired=TimeoutError)
    monkeypatch.setattr(sampler_process, "subprocess", fake)
    found = SamplerProcess("ipc:///nowhere", "node1", 1.0, ManualClock())
    found.keep()
    yield SimpleNamespace(process=found, told=tmp_path / "told", child=made[0])
    made[0].kill()
    made[0].communicate()
    output.close()


def told(sampler):
    """End the sampler by its pipe, and return what it was told to watch last, and the lines."""
    sampler.process.ask_to_end()
    sampler.child.wait(30)
    data = sampler.told.read_bytes()
    watch_list = WatchList()
    watch_list.feed(data)
    return watch_list.newest, data.count(b"\n")


def test_an_order_is_given_once_and_again_when_it_changes(sampler):
    """Not with each tick."""
    for processes in ([], [HERE], [HERE], [HERE]):
        sampler.process.watch(processes)

    assert told(sampler) == ((HERE,), 2)


def test_a_sampler_that_is_frozen_delays_nobody_and_gets_the_newest_order(sampler):
    """Its pipe is full; the sidecar goes on, and writes the rest when there is room."""
    os.kill(sampler.child.pid, signal.SIGSTOP)
    for pid in range(1, 2000):
        sampler.process.watch([Watched("r1", "rank0", pid, 1)])
    os.kill(sampler.child.pid, signal.SIGCONT)
    for _ in range(100_000):
        sampler.process.watch([HERE])
        if sampler.told.read_bytes().endswith(b'"start_ns":1700000000000000000}]}\n'):
            break

    newest, lines = told(sampler)
    assert newest == (HERE,)
    assert lines < 2000
