"""Faults that take a real sidecar and some time: each in a short form, and in a long one
that `make test-faults` runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from shared.emitter import Emitter
from shared.events import MetricsLogged, encode_event, join_events
from shared.ids import StreamId
from telemetry.config import ServeConfig
from telemetry.journal.layout import read_mark
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import read_json, write_json
from telemetry.service import Service
from tests.telemetry.sidecar_process import SidecarProcess
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import finished, metric, read_rows, started

MEGABYTE = 1024 * 1024
NOTICED_S = 0.5
"""An emit() that took so long would be noticed; on a busy machine a little less is chance."""


def slow(*values: float) -> pytest.param:
    return pytest.param(*values, marks=[pytest.mark.faults, pytest.mark.timeout(300)])


def emitter(endpoint: str, **options: object) -> Emitter:
    defaults = {"run_id": "r", "source": "rank0", "close_timeout_s": 60.0}
    return Emitter(endpoint, **defaults | {"series_interval_s": 1e6} | options)


def emit_until(
    producer: Emitter, is_over: Callable[[], bool], first_step: int = 0, every_s: float = 0.002
) -> tuple[int, float]:
    """Train: an event each few milliseconds. How many there were, and the longest emit()."""
    step, longest_s = first_step, 0.0
    while not is_over():
        began_s = time.perf_counter()
        producer.emit(metric(step))
        longest_s = max(longest_s, time.perf_counter() - began_s)
        step += 1
        threading.Event().wait(every_s)
    return step - first_step, longest_s


def after(seconds: float) -> Callable[[], bool]:
    end_s = time.monotonic() + seconds
    return lambda: time.monotonic() >= end_s


def emit_many(producer: Emitter, count: int, first_step: int = 0) -> None:
    """As many as the sidecar can take, and never so many that some are dropped."""
    for step in range(first_step, first_step + count):
        producer.emit(metric(step))
        if step % 1000 == 0:
            wait_until(lambda: producer.stats().queued < 20_000, 120)


def steps(data_dir: Path, run_id: str = "r") -> list[int | None]:
    events = [row.envelope.event() for row in read_rows(data_dir / "runs" / run_id)]
    return [event.step for event in events if isinstance(event, MetricsLogged)]


def rss(sidecar: SidecarProcess) -> int:
    return int(sidecar.service.memory_info().rss)


def fds(sidecar: SidecarProcess) -> int:
    return int(sidecar.service.num_fds())


@pytest.mark.parametrize("seconds", [2, slow(60)])
def test_a_frozen_sidecar_is_not_noticed_and_gets_everything(place, seconds):
    """SIGSTOP, as a debugger or a container's pause does it. Row 4 of the fault catalogue."""
    with (
        SidecarProcess(place / "data") as sidecar,
        emitter(sidecar.endpoint, spool_dir=place / "spool") as producer,
    ):
        producer.emit(started())
        wait_until(lambda: producer.stats().acknowledged == 1)
        sidecar.service.suspend()
        count, longest_s = emit_until(producer, after(seconds))
        in_flight = producer.stats().queued
        sidecar.service.resume()
        is_all = producer.close()

    assert in_flight > 100 * seconds and longest_s < NOTICED_S
    assert is_all and steps(place / "data") == list(range(count))


@pytest.mark.parametrize("seconds", [1, slow(10)])
def test_a_disk_that_freezes_under_journal_and_spool_is_not_noticed(place, monkeypatch, seconds):
    """Every write and every sync hangs, as on NFS without its server. Row 35."""
    thawed = threading.Event()
    fdatasync, pwrite = os.fdatasync, os.pwrite

    def hanging_sync(fd: int) -> None:
        thawed.wait()
        fdatasync(fd)

    def hanging_write(fd: int, data: bytes, at: int) -> int:
        thawed.wait()
        return pwrite(fd, data, at)

    config = ServeConfig(
        data_dir=place / "data", http="off", page="off", sinks=(), sample_hz=0.0, drain_grace_s=1.0
    )
    with Service(config) as service:
        thread = threading.Thread(target=service.run)
        thread.start()
        with emitter(config.address, spool_dir=place / "spool") as producer:
            producer.emit(metric(0))
            wait_until(lambda: producer.stats().acknowledged == 1)
            monkeypatch.setattr(os, "fdatasync", hanging_sync)
            monkeypatch.setattr(os, "pwrite", hanging_write)
            count, longest_s = emit_until(producer, after(seconds), first_step=1)
            stats = producer.stats()
            thawed.set()
            is_all = producer.close()
        service.stop.set()
        thread.join(30)

    assert stats.acknowledged == 1 and stats.queued == count > 50 * seconds
    assert longest_s < NOTICED_S
    assert is_all and steps(place / "data") == list(range(count + 1))


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, where the system lets us mount one."""
    disk = place / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here: it takes root, outside a container")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("count", [20_000, slow(100_000)])
def test_a_disk_that_fills_up_stops_the_acks_and_with_room_all_goes_on(place, count):
    """A real ENOSPC in the middle of writes, and a sink that meets it as well. Row 11."""
    size = 4 * count // 10_000
    with (
        small_disk(place, size) as disk,
        SidecarProcess(disk / "data", "--min-free-bytes=0", "--sinks=tensorboard") as sidecar,
        emitter(f"ipc://{disk}/data/telemetry.sock", spool_dir=place / "spool") as producer,
    ):
        producer.emit(started())
        wait_until(lambda: producer.stats().acknowledged == 1)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 300_000))
        emit_many_to_spool(producer, count)
        wait_until(lambda: "no room on disk" in sidecar.log)
        acknowledged, in_flight = producer.stats().acknowledged, producer.stats().queued
        kept = len(steps(disk / "data"))
        ballast.unlink()
        producer.emit(finished())
        is_all = producer.close()
        wait_until(lambda: is_done(disk / "data", "tensorboard"), 120)

        assert in_flight > 0 and kept >= acknowledged - 1
        assert is_all and steps(disk / "data") == list(range(count))
        assert points(disk / "data") == count
        assert "there is room on disk again" in sidecar.log


def emit_many_to_spool(producer: Emitter, count: int) -> None:
    """Where nobody acknowledges, the spool takes them."""
    for step in range(count):
        producer.emit(metric(step))
        if step % 1000 == 0:
            wait_until(lambda: producer.stats().queued - producer.stats().spooled < 20_000, 120)


def is_done(data_dir: Path, sink: str) -> bool:
    cursor = read_json(data_dir / "runs" / "r" / "cursors" / f"{sink}.json") or {}
    return bool(cursor.get("done"))


def points(data_dir: Path) -> int:
    """How many points of the loss TensorBoard finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventAccumulator(str(data_dir / "runs" / "r" / "tensorboard" / "rank0"), {"scalars": 0})
    files.Reload()
    return len(files.Scalars("train/loss"))


@pytest.mark.parametrize("count", [30_000, slow(1_000_000)])
def test_what_a_frozen_sink_does_not_take_is_in_the_journal_and_not_in_memory(place, count):
    """The journal is the queue: the sidecar's memory stays flat. Row 32."""
    flags = ("--sinks=tensorboard", "--sink-timeout-s=600")
    with (
        SidecarProcess(place / "data", *flags) as sidecar,
        emitter(sidecar.endpoint, spool_dir=place / "spool") as producer,
    ):
        producer.emit(started())
        cursor = place / "data" / "runs" / "r" / "cursors" / "tensorboard.json"
        wait_until(cursor.exists, 60)
        (sink,) = sidecar.service.children()
        sink.suspend()
        emit_many(producer, count // 4)
        before = rss(sidecar)
        emit_many(producer, count - count // 4, count // 4)
        wait_until(lambda: producer.stats().acknowledged == count + 1, 120)
        grown = rss(sidecar) - before
        behind = count + 1 - (read_json(cursor) or {})["row"]
        sink.resume()
        producer.emit(finished())
        is_all = producer.close()
        wait_until(lambda: is_done(place / "data", "tensorboard"), 240)

    assert behind >= count - 1, "the sink was not frozen"
    assert grown < 8 * MEGABYTE
    mark = read_mark(place / "data" / "runs" / "r" / "journal")
    assert is_all and mark is not None and mark.next_row == count + 2
    assert (read_json(cursor) or {})["row"] == count + 2


@pytest.mark.parametrize("runs", [25, slow(500)])
def test_runs_that_have_ended_take_no_memory_and_no_descriptor(place, runs):
    """A sidecar serves for months. Row 36 of the fault catalogue, in its breadth."""
    with SidecarProcess(place / "data") as sidecar:
        for number in range(runs):
            with emitter(sidecar.endpoint, run_id=f"r{number}") as producer:
                producer.emit(started())
                producer.emit(metric(0))
                producer.emit(finished())
            if number == runs // 5:
                wait_until(lambda n=number: has_ended(place / "data", n))
                before, open_before = rss(sidecar), fds(sidecar)
        wait_until(lambda: all(has_ended(place / "data", n) for n in range(runs)), 60)
        wait_until(lambda: fds(sidecar) <= open_before + 3)

        assert rss(sidecar) - before < 8 * MEGABYTE
        assert all(steps(place / "data", f"r{n}") == [0] for n in range(runs))


@pytest.mark.parametrize("runs", [25, slow(500)])
def test_ended_runs_that_their_sink_is_behind_with_wait_on_disk(place, runs):
    """A week without a network, say: the sidecar's memory does not know how many there
    are, and no more sinks are at work than allowed. Row 32, in its breadth."""
    flags = ("--sinks=tensorboard", "--max-sink-processes=1", "--sink-timeout-s=600")
    with SidecarProcess(place / "empty", *flags) as sidecar:
        wait_until(after(2))
        alone, open_alone = rss(sidecar), fds(sidecar)
    for number in range(runs):
        record_ended(place / "data" / "runs" / f"r{number}")
    with SidecarProcess(place / "data", *flags) as sidecar:
        sink = wait_until(lambda: first_sink(sidecar.service.children()))
        sink.suspend()
        wait_until(after(2))
        early = rss(sidecar)
        wait_until(after(4))
        late = rss(sidecar)
        at_work = len(sidecar.service.children())
        wait_until(lambda: fds(sidecar) <= open_alone + 2)
        sink.resume()
        # The next run's turn comes, and so on.
        done = [place / "data" / "runs" / f"r{n}" / "cursors/tensorboard.json" for n in (0, 1)]
        wait_until(lambda: all((read_json(path) or {}).get("done") for path in done), 60)

    assert at_work == 1, "the sinks were not behind"
    assert early - alone < 8 * MEGABYTE and late - early < MEGABYTE


def first_sink(found: list[psutil.Process]) -> psutil.Process | None:
    """The first child that is a sink by now: before its exec its parent waits for it."""
    return next((child for child in found if "sink" in child.cmdline()), None)


def record_ended(run_dir: Path) -> None:
    """A run as a former sidecar left it, with nothing in any sink."""
    events = [encode_event(event, 1, 1) for event in (started(), metric(0), finished())]
    with JournalWriter(run_dir / "journal") as writer:
        writer.append(StreamId(run_dir.name, "s1", "rank0"), 0, len(events), join_events(events))
        writer.sync()
    info = {"run_id": run_dir.name, "name": "n", "state": "ended", "endings": 1, "as_of_row": 3}
    write_json(run_dir / "run.json", info | {"status": "finished", "exit_code": 0})


def has_ended(data_dir: Path, number: int) -> bool:
    info = read_json(data_dir / "runs" / f"r{number}" / "run.json") or {}
    return info.get("state") == "ended"


@pytest.mark.parametrize("seconds", [4, slow(25)])
def test_a_soak_leaves_memory_and_descriptors_where_they_were(place, seconds):
    """Some 400 events a second from two ranks, while a real loop logs a few. Row 36."""
    with (
        SidecarProcess(place / "data", "--sinks=tensorboard") as sidecar,
        emitter(sidecar.endpoint) as producer,
        emitter(sidecar.endpoint, source="rank1") as other,
    ):
        producer.emit(started())
        emit_until(producer, after(seconds / 4))
        wait_until(lambda: (place / "data/runs/r/cursors/tensorboard.json").exists(), 60)
        first = producer.stats().emitted - 1
        before, open_before = rss(sidecar), fds(sidecar)
        thread = threading.Thread(target=emit_until, args=(other, after(seconds)))
        thread.start()
        count, _ = emit_until(producer, after(seconds), first_step=first)
        thread.join()
        told = other.stats().emitted
        wait_until(lambda: producer.stats().queued == other.stats().queued == 0)
        grown, opened = rss(sidecar) - before, fds(sidecar) - open_before
        other.close()
        producer.emit(finished())
        is_all = producer.close()
        wait_until(lambda: is_done(place / "data", "tensorboard"), 60)

    assert grown < 8 * MEGABYTE and opened <= 6
    assert is_all and told > 50 * seconds
    rows = [(row.source, row.envelope.event()) for row in read_rows(place / "data" / "runs" / "r")]
    for source, expected in (("rank0", first + count), ("rank1", told)):
        found = [e.step for s, e in rows if s == source and isinstance(e, MetricsLogged)]
        assert found == list(range(expected))
