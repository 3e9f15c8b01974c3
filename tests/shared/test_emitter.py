"""The emitter: training never waits, never sees an exception, and loses nothing uncounted."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import zmq

from shared.clock import SystemClock
from shared.emitter import Emitter, EmitterStats, NullEmitter
from shared.emitter.connection import Connection
from shared.emitter.options import EmitterOptions
from shared.emitter.spool import adopt_orphans
from shared.events import (
    ConfigUpdated,
    Event,
    Gap,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
)
from shared.wire import SCHEMA, FinAck, Hello, Message, encode
from tests.fakes import Disk, FakeSidecar
from tests.telemetry.waiting import wait_until

RUN = "run"
FAR_S = 20.0


@pytest.fixture
def endpoint(place: Path) -> str:
    return f"ipc://{place}/s"


@pytest.fixture
def spool_dir(place: Path) -> Path:
    return place / "spool"


def metric(step: int, kind: str = "train") -> MetricsLogged:
    return MetricsLogged(kind=kind, step=step, values={"train/loss": step / 2})


def steps(events: list[Event | None]) -> list[int | None]:
    return [event.step for event in events if isinstance(event, MetricsLogged)]


def adds_up(stats: EmitterStats) -> bool:
    return stats.emitted == stats.acknowledged + stats.queued + stats.dropped + stats.refused


def memory_of(emitter: Emitter) -> int:
    """Bytes that are held behind the queue."""
    sender = emitter._sender
    return sender.framing.backlog.held_bytes + sender.main.stream.frames.memory_bytes


def orphaned(directory: Path) -> int:
    """Events in spools whose owners are gone."""
    orphans = adopt_orphans(directory)
    count = sum(header.count for orphan in orphans for header, _ in orphan.frames())
    for orphan in orphans:
        orphan.close(delete=False)
    return count


def test_events_arrive_in_order_exactly_once(endpoint, spool_dir):
    """Of every type; close() says that all is on disk, and no spool is left."""
    said: list[Event] = [RunStarted(project="p", name="n", config={"lr": 1e-3})]
    said += [metric(step) for step in range(3000)]
    said += [
        HistogramLogged(kind="quant", step=1, name="h", edges=[0.0, 1.0], counts=[2.0]),
        ConfigUpdated(config={"parameters": 7}),
        MessageLogged(level="info", text="stage: warmup"),
        RunFinished(status="finished", exit_code=0),
    ]
    with FakeSidecar(endpoint) as sidecar:
        emitter = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir)

        for event in said:
            emitter.emit(event)
        is_all = emitter.close(FAR_S)

        key = sidecar.disk.key_of(RUN)
        assert is_all
        assert sidecar.disk.typed(key) == said
        assert key == (RUN, emitter.session, "rank0") and key in sidecar.disk.finished
        assert sidecar.malformed == []
    assert emitter.stats() == EmitterStats(emitted=len(said), acknowledged=len(said))
    assert not spool_dir.exists() or list(spool_dir.iterdir()) == []


def test_without_a_run_id_each_start_is_a_run_of_its_own(endpoint, spool_dir):
    """A second try does not go on with the first one's run."""
    with FakeSidecar(endpoint) as sidecar:
        for _ in range(2):
            with Emitter(endpoint, spool_dir=spool_dir) as emitter:
                emitter.emit(metric(1))

        run_ids = {run_id for run_id, *_ in sidecar.disk.events}

    assert len(run_ids) == 2


def test_what_is_changed_after_emit_was_said_as_it_was(endpoint):
    """Values, and the containers of a config, are copied."""
    values: dict[str, float] = {"a": 1.0}
    config = {"inner": {"list": [1]}}
    with FakeSidecar(endpoint) as sidecar:
        emitter = Emitter(endpoint, run_id=RUN, source="rank0")

        emitter.emit(MetricsLogged(kind="train", values=values))
        emitter.emit(RunStarted(project="p", name="n", config=config))
        values["a"] = 2.0
        config["inner"]["list"].append(2)

        assert emitter.close(FAR_S)
        first, second = sidecar.disk.typed(sidecar.disk.key_of(RUN))
    assert isinstance(first, MetricsLogged) and first.values == {"a": 1.0}
    assert isinstance(second, RunStarted) and second.config == {"inner": {"list": [1]}}


def test_a_row_that_changes_while_it_is_said_is_not_lost(endpoint):
    """Another thread adds to the same dict, and to one within it."""
    inner: dict[str, float] = {}
    values: dict[str, object] = {"inner": inner}
    is_over = threading.Event()

    def change() -> None:
        for number in itertools.cycle(range(400)):
            values[f"m{number}"] = inner[f"i{number}"] = 1.0
            if number == 399:
                [values.pop(f"m{n}") and inner.pop(f"i{n}") for n in range(400)]
            if is_over.is_set():
                return

    thread = threading.Thread(target=change)
    with FakeSidecar(endpoint) as sidecar:
        emitter = Emitter(endpoint, run_id=RUN, source="rank0")
        thread.start()
        for step in range(300):
            emitter.emit(
                MetricsLogged(kind="train", step=step, values={"at": step, "deep": values})
            )
            emitter.emit(MetricsLogged(kind="val", step=step, values=values))
        is_over.set()
        thread.join()
        values["end"] = 1.0
        emitter.emit(MetricsLogged(kind="train", step=300, values=values))

        assert emitter.close(FAR_S)
        events = sidecar.disk.typed(sidecar.disk.key_of(RUN))
    assert emitter.stats().refused == 0
    assert [event.step for event in events if event.kind == "train"] == list(range(301))


def test_a_sidecar_that_comes_later_gets_everything(endpoint, spool_dir):
    """Row 3 of the fault catalogue: from the spool first, then from memory."""
    emitter = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir)
    for step in range(300):
        emitter.emit(metric(step))
    wait_until(lambda: emitter.stats().spooled == 300)
    for step in range(300, 310):
        emitter.emit(metric(step))

    with FakeSidecar(endpoint) as sidecar:
        sidecar.wait_for_events(RUN, 310)
        assert emitter.close(FAR_S)
        assert steps(sidecar.disk.typed(sidecar.disk.key_of(RUN))) == list(range(310))
    assert adds_up(emitter.stats()) and list(spool_dir.iterdir()) == []


def test_a_sidecar_killed_in_mid_stream_gets_everything_once(endpoint):
    """Row 1: each time with events that it had received and not made durable."""
    disk, total = Disk(), 0
    with Emitter(endpoint, run_id=RUN, source="rank0") as emitter:
        for _ in range(3):
            with FakeSidecar(endpoint, disk) as sidecar:
                for step in range(total, total + 50):
                    emitter.emit(metric(step))
                total += 50
                sidecar.wait_for_events(RUN, total)
                sidecar.is_syncing = False
                for step in range(total, total + 50):
                    emitter.emit(metric(step))
                total += 50
                sidecar.wait_for(lambda sidecar=sidecar: sidecar.undurable_events > 0)
                sidecar.close()
                assert sidecar.undurable_events > 0
                assert emitter.stats().queued > 0
        with FakeSidecar(endpoint, disk) as sidecar:
            sidecar.wait_for_events(RUN, total)
            assert emitter.close(FAR_S)
            assert steps(disk.typed(disk.key_of(RUN))) == list(range(total))
    assert emitter.stats() == EmitterStats(emitted=total, acknowledged=total)


def test_a_sidecar_that_answers_nothing_for_a_while_gets_everything_once(endpoint):
    """Row 4: frozen. The socket is rebuilt, and what was swallowed is sent again."""
    options = EmitterOptions(silence_s=0.3)
    with (
        FakeSidecar(endpoint) as sidecar,
        Emitter(endpoint, run_id=RUN, source="rank0", options=options) as emitter,
    ):
        emitter.emit(metric(0))
        sidecar.wait_for_events(RUN, 1)
        (old,) = sidecar.peers
        sidecar.is_mute = True
        for step in range(1, 20):
            emitter.emit(metric(step))
        sidecar.wait_for(lambda: sidecar.peers != {old})
        assert emitter.stats().queued == 19

        sidecar.is_mute = False
        sidecar.wait_for_events(RUN, 20)

        assert emitter.close(FAR_S)
        assert steps(sidecar.disk.typed(sidecar.disk.key_of(RUN))) == list(range(20))


def test_a_refused_stream_is_tried_again(endpoint):
    """As while another session of its source is still taken for live."""
    with FakeSidecar(endpoint) as sidecar, Emitter(endpoint, run_id=RUN, source="rank0") as emitter:
        sidecar.refused = {RUN}
        emitter.emit(metric(0))
        wait_until(lambda: emitter._sender.main.refusal == "refused")
        assert sidecar.disk.events == {}

        sidecar.refused = set()

        sidecar.wait_for_events(RUN, 1)
        assert emitter.close(FAR_S)


class BadEquality:
    """Raises wherever it is compared, hashed or shown."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


REFUSED: list[object] = [
    None,
    object(),
    "text",
    MetricsLogged,
    MetricsLogged(kind="train", values=None),
    MetricsLogged(kind="train", values={"x": object()}),
    MetricsLogged(kind="train", step=BadEquality(), values={"x": BadEquality()}),
    MessageLogged(level="info", text=None),
    MessageLogged(level="info", text=BadEquality()),
    HistogramLogged(kind="quant", name="h", edges=[0.0], counts=[1.0]),
    Gap(count=-1, reason="r"),
]
PARTLY: list[Event] = [
    MetricsLogged(kind=BadEquality(), values={"ok": 1.0}),
    MetricsLogged(kind="custom", step=BadEquality(), values={"ok": 1.0}),
    MetricsLogged(kind="custom", values={"ok": 1.0, "x": 2**64 + 1, "y": None}),
    MessageLogged(level="info", text="x" * 10**6),
    RunStarted(project=BadEquality(), name=None, tags=7, config=BadEquality()),
]


def test_garbage_is_refused_and_counted_and_its_neighbours_arrive(endpoint, caplog):
    """Row 23: emit() raises nothing, whatever it is given; what can be recorded of it is."""
    with FakeSidecar(endpoint) as sidecar:
        emitter = Emitter(endpoint, run_id=RUN, source="rank0")
        for step, thing in enumerate([*REFUSED, *PARTLY]):
            emitter.emit(metric(step))
            emitter.emit(thing)
        emitter.emit(MetricsLogged(kind="val", values={f"m{i}": 0 for i in range(2_500)}))

        assert emitter.close(FAR_S)
        events = sidecar.disk.typed(sidecar.disk.key_of(RUN))
    gaps = [event for event in events if isinstance(event, Gap)]
    told = [event for event in events if getattr(event, "left_out_count", 0)]
    wide = [event for event in events if isinstance(event, MetricsLogged) and event.kind == "val"]
    assert [step for step in steps(events) if step is not None] == list(range(len(told) + 11))
    assert sum(gap.count for gap in gaps) == len(REFUSED) == emitter.stats().refused
    assert len(told) == len(PARTLY) and adds_up(emitter.stats())
    assert [len(event.values) for event in wide] == [1024, 1024, 452]
    reasons = [record.getMessage() for record in caplog.records if record.name.endswith("emitter")]
    assert 5 < len(reasons) == len(set(reasons)) < len(REFUSED) + len(PARTLY)


class FrozenSpool:
    """Stands for a spool on a frozen disk: a write does not return until it thaws."""

    def __init__(self) -> None:
        self._pwrite = os.pwrite
        self.is_stuck = threading.Event()
        self.thaw = threading.Event()

    def pwrite(self, fd: int, data: bytes, at: int) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink().suffix not in (".making", ".spool"):
            return self._pwrite(fd, data, at)
        self.is_stuck.set()
        assert self.thaw.wait(FAR_S)
        raise OSError(errno.EIO, "frozen")


def test_emit_does_not_wait_while_the_sender_is_stuck_on_a_disk(endpoint, spool_dir, monkeypatch):
    """Row 35: the queue fills up to its bound, and what does not fit is counted."""
    frozen = FrozenSpool()
    monkeypatch.setattr(os, "pwrite", frozen.pwrite)
    emitter = Emitter(
        endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir, queue_max_bytes=4 * 2**20
    )
    emitter.emit(metric(0))
    assert frozen.is_stuck.wait(FAR_S)

    began = time.monotonic()
    for step in range(1, 20_001):
        emitter.emit(metric(step))
    emitter.emit(RunFinished(status="finished"))
    took_s = time.monotonic() - began
    stuck = emitter.stats()
    began = time.monotonic()
    is_all = emitter.close(0.5)
    close_s = time.monotonic() - began

    assert took_s < 5.0, "about 1 µs each, and much more on a shared core"
    assert not frozen.thaw.is_set() and not is_all and close_s < 2.0
    assert stuck.dropped > 0 and stuck.queued > 0 and adds_up(stuck)
    assert stuck.emitted == 20_002
    frozen.thaw.set()
    assert emitter._sender.has_ended.wait(FAR_S)


@pytest.mark.parametrize("spool_max_bytes", [None, 200_000])
def test_a_full_queue_is_counted_by_kind_and_the_gap_arrives(endpoint, spool_dir, spool_max_bytes):
    """Row 5: no sidecar until memory is full, and the spool if there is one; then it comes."""
    said: Counter[str] = Counter()
    options: dict[str, object] = {"queue_max_bytes": 2**19}
    if spool_max_bytes is not None:
        options["options"] = EmitterOptions(spool_max_bytes=spool_max_bytes)
        options["spool_dir"] = spool_dir
    emitter = Emitter(endpoint, run_id=RUN, source="rank0", **options)

    def say(event: Event, kind: str) -> None:
        emitter.emit(event)
        said[kind] += 1

    say(RunStarted(project="p", name="n"), "run_started")
    for step in range(30_000):
        say(metric(step), "train")
        if step % 1000 == 0:
            say(metric(step, "val"), "val")
            say(MessageLogged(level="info", text="stage"), "message")
            wait_until(lambda: not emitter._queue)
    say(RunFinished(status="finished"), "run_finished")
    wait_until(lambda: not emitter._queue)
    stats = emitter.stats()
    assert stats.dropped_by_reason == {"queue full": stats.dropped} and adds_up(stats)
    memory = memory_of(emitter)
    assert memory < 2**19
    spooled = sum(path.stat().st_size for path in spool_dir.glob("*.spool"))
    assert (spooled > 0) == (stats.spooled > 0) == (spool_max_bytes is not None)
    assert spooled < (spool_max_bytes or 0) + 300_000

    with FakeSidecar(endpoint) as sidecar:
        assert emitter.close(FAR_S)
        events = sidecar.disk.typed(sidecar.disk.key_of(RUN))

    kept = Counter(e.kind if isinstance(e, MetricsLogged) else e.TAG for e in events if e)
    gaps = [event for event in events if isinstance(event, Gap)]
    counted = sum((Counter(gap.by_kind) for gap in gaps), Counter())
    assert kept.pop("gap") == len(gaps) and kept + counted == said
    assert counted == {"train": counted["train"]}
    assert isinstance(events[0], RunStarted) and isinstance(events[-1], RunFinished)
    assert steps(events) == sorted(steps(events))
    stats = emitter.stats()
    assert adds_up(stats) and stats.dropped == counted.total() and stats.queued == 0


@pytest.mark.parametrize("has_spool", [True, False])
def test_a_burst_beside_a_healthy_sidecar_is_all_recorded(endpoint, spool_dir, has_spool):
    """20,000 rows of 12 values back to back: nothing is dropped while there is memory."""
    options = {"spool_dir": spool_dir} if has_spool else {}
    values = {f"train/value_{i}": i / 2 for i in range(12)}
    with FakeSidecar(endpoint) as sidecar:
        emitter = Emitter(endpoint, run_id=RUN, source="rank0", **options)

        for step in range(20_000):
            emitter.emit(MetricsLogged(kind="train", step=step, values=values))

        assert emitter.close(FAR_S * 3)
        assert steps(sidecar.disk.typed(sidecar.disk.key_of(RUN))) == list(range(20_000))
    assert emitter.stats() == EmitterStats(emitted=20_000, acknowledged=20_000)


def test_a_burst_that_memory_does_not_hold_goes_to_the_spool(endpoint, spool_dir):
    """Ten times the bound, with a sidecar that acknowledges nothing until the end."""
    values = {f"train/value_{i}": i / 2 for i in range(12)}
    with FakeSidecar(endpoint) as sidecar:
        sidecar.is_syncing = False
        emitter = Emitter(
            endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir, queue_max_bytes=16 * 2**20
        )

        for step in range(160_000):
            emitter.emit(MetricsLogged(kind="train", step=step, values=values))
        held = memory_of(emitter)
        sidecar.is_syncing = True

        assert held < 16 * 2**20 and emitter.close(FAR_S * 3)
        assert emitter.stats() == EmitterStats(emitted=160_000, acknowledged=160_000)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_the_end_waits_for_nobody_who_is_not_there(endpoint, spool_dir, caplog, is_frozen):
    """With all of it in the spool: 0.3 s after the last write, and it says what is where.
    One that is there and does not answer is waited for, as long as an answer may take."""
    with contextlib.ExitStack() as stack:
        if is_frozen:
            stack.enter_context(FakeSidecar(endpoint)).is_mute = True
        emitter = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir)
        for step in range(2_000):
            emitter.emit(metric(step))
        wait_until(lambda: emitter.stats().spooled == 2_000)

        began = time.monotonic()
        is_all = emitter.close()
        took_s = time.monotonic() - began

    assert not is_all and orphaned(spool_dir) == 2_000
    assert took_s < (3.5 if is_frozen else 0.6), "0.2 s, and much more on a shared core"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "2000 events" in line and str(spool_dir) in line


def test_the_end_waits_for_a_sidecar_that_answers_late(endpoint, spool_dir):
    """As one whose disk stands still for a second: it is there, and it answers."""
    with FakeSidecar(endpoint) as sidecar:
        sidecar.is_syncing = False
        emitter = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir)
        for step in range(100):
            emitter.emit(metric(step))
        wait_until(lambda: emitter.stats().spooled == 100)
        sync = threading.Timer(1.0, lambda: setattr(sidecar, "is_syncing", True))
        sync.start()

        assert emitter.close(FAR_S)
        sync.join()
    assert list(spool_dir.iterdir()) == []


def test_close_is_bounded_and_the_rest_is_taken_in_by_the_next_emitter(endpoint, spool_dir):
    """Row 22: under the session that said it; the file goes when all of it is durable."""
    first = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir)
    for step in range(50):
        first.emit(metric(step))

    began = time.monotonic()
    is_all = first.close(1.0)
    took_s = time.monotonic() - began

    assert not is_all and took_s < 2.0
    assert first.stats().spooled == 50 and orphaned(spool_dir) == 50
    with FakeSidecar(endpoint) as sidecar:
        second = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir)
        second.emit(metric(1000))
        sidecar.wait_for_events(RUN, 51)
        sidecar.wait_for(lambda: (RUN, first.session, "rank0") in sidecar.disk.finished)
        wait_until(lambda: not list(spool_dir.glob("*.spool")))
        assert second.close(FAR_S)
        old, new = ((RUN, emitter.session, "rank0") for emitter in (first, second))
        assert steps(sidecar.disk.typed(old)) == list(range(50))
        assert steps(sidecar.disk.typed(new)) == [1000]


def test_an_orphan_that_was_sent_once_already_is_not_doubled(endpoint, spool_dir):
    """The acknowledgement was lost with the process; the sidecar knows better."""
    with FakeSidecar(endpoint) as sidecar:
        sidecar.is_syncing = False
        first = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir)
        for step in range(20):
            first.emit(metric(step))
        sidecar.wait_for(lambda: sidecar.undurable_events == 20)
        assert not first.close(1.0)
        sidecar.is_syncing = True
        sidecar.wait_for_events(RUN, 20)
        assert orphaned(spool_dir) == 20

        with Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir):
            key = (RUN, first.session, "rank0")
            sidecar.wait_for(lambda: key in sidecar.disk.finished)
            wait_until(lambda: not list(spool_dir.glob("*.spool")))

        assert steps(sidecar.disk.typed(key)) == list(range(20))
        assert sidecar.frames_repeated > 0


def test_a_spool_that_breaks_under_a_live_emitter_costs_what_was_in_it(endpoint, spool_dir):
    """What was lost is counted, told to the sidecar, and the rest arrives."""
    emitter = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir)
    for step in range(10):
        emitter.emit(metric(step))
    wait_until(lambda: emitter.stats().spooled == 10)
    (path,) = spool_dir.glob("*.spool")
    os.truncate(path, 150)
    for step in range(10, 15):
        emitter.emit(metric(step))

    with FakeSidecar(endpoint) as sidecar:
        assert emitter.close(FAR_S)
        (key,) = sidecar.disk.events
        assert steps(sidecar.disk.typed(key)) == list(range(10, 15))
        assert sidecar.disk.lost[key] == 10
    assert emitter.stats().dropped == 10 and adds_up(emitter.stats())


def test_a_loss_at_the_very_end_of_a_stream_does_not_keep_it_from_ending(endpoint, spool_dir):
    """Nothing follows that could show the hole: the HELLO says it."""
    emitter = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir)
    emitter.emit(metric(0))
    wait_until(lambda: emitter.stats().spooled == 1)
    (path,) = spool_dir.glob("*.spool")
    os.truncate(path, 100)

    with FakeSidecar(endpoint) as sidecar:
        assert emitter.close(4.0)  # before the next keepalive
        assert list(sidecar.disk.lost.values()) == [1] and len(sidecar.disk.finished) == 1
    assert emitter.stats() == EmitterStats(emitted=1, dropped=1)


def test_what_is_not_overdue_when_the_time_is_up_goes_to_the_spool_all_the_same(
    endpoint, spool_dir
):
    """Row 22: a very short close_timeout_s loses nothing either."""
    emitter = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir)
    for step in range(50):
        emitter.emit(metric(step))

    assert not emitter.close(0.05)

    assert emitter._sender.has_ended.wait(FAR_S)
    assert orphaned(spool_dir) == 50


def test_an_event_that_the_sidecar_rejects_counts_as_refused(endpoint):
    """It was sent and acknowledged, and is in no journal."""
    with FakeSidecar(endpoint) as sidecar:
        sidecar.rejected_seqs = {3}
        emitter = Emitter(endpoint, run_id=RUN, source="rank0")
        for step in range(5):
            emitter.emit(metric(step))

        assert emitter.close(FAR_S)

    assert emitter.stats() == EmitterStats(emitted=5, acknowledged=4, refused=1)


def test_nothing_raises_or_waits_after_close(endpoint):
    """Counted as dropped; close() again says the same."""
    with FakeSidecar(endpoint):
        emitter = Emitter(endpoint, run_id=RUN, source="rank0")
        emitter.emit(metric(0))
        assert emitter.close(FAR_S)

        emitter.emit(metric(1))
        emitter.emit(object())

        assert emitter.close(0.1)
    assert emitter.stats() == EmitterStats(emitted=3, acknowledged=1, dropped=1, refused=1)
    assert adds_up(emitter.stats())


def test_an_emitter_that_said_nothing_ends_at_once(endpoint):
    """There is nothing to wait for, sidecar or not."""
    began = time.monotonic()
    emitter = Emitter(endpoint, run_id=RUN, source="rank0")

    assert emitter.close(FAR_S)
    assert time.monotonic() - began < FAR_S / 2


@pytest.mark.parametrize(
    "bad",
    [
        {"endpoint": "http://x"},
        {"endpoint": "ipc://" + "x" * 108},
        {"endpoint": 7},
        {"endpoint": "tcp://host:0"},
        {"run_id": "../etc"},
        {"run_id": "x" * 65},
        {"run_id": "a\n"},
        {"source": "rank"},
        {"source": "hardware:a/b"},
    ],
    ids=str,
)
def test_a_bad_name_is_refused_before_anything_starts(endpoint, bad):
    """Row 27: with the value, cut to a readable length."""
    arguments = {"endpoint": endpoint, "run_id": RUN, "source": "rank0"} | bad
    before = threading.active_count()

    with pytest.raises(ValueError) as refused:
        Emitter(arguments.pop("endpoint"), **arguments)

    assert len(str(refused.value)) < 300
    assert threading.active_count() == before


def test_no_thread_to_be_had_does_not_reach_training(endpoint, monkeypatch):
    """The next event tries again; those before are counted."""
    start = threading.Thread.start

    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with FakeSidecar(endpoint) as sidecar:
        monkeypatch.setattr(threading.Thread, "start", none_left)
        emitter = Emitter(endpoint, run_id=RUN, source="rank0")
        emitter.emit(metric(0))
        monkeypatch.setattr(threading.Thread, "start", start)

        emitter.emit(metric(1))

        assert emitter.close(FAR_S)
        gap, event = sidecar.disk.typed(sidecar.disk.key_of(RUN))
        assert isinstance(gap, Gap) and gap.count == 1 and steps([event]) == [1]


def test_no_socket_to_be_had_leaves_events_in_the_spool_until_there_is_one(
    endpoint, spool_dir, monkeypatch
):
    """A trainer may be out of file descriptors for a while."""
    make, is_out = zmq.Context.socket, threading.Event()
    is_out.set()

    def none_left(self: zmq.Context, kind: int) -> zmq.Socket:
        if is_out.is_set() and kind == zmq.DEALER:
            raise zmq.ZMQError(errno.EMFILE)
        return make(self, kind)

    monkeypatch.setattr(zmq.Context, "socket", none_left)
    with FakeSidecar(endpoint) as sidecar:
        emitter = Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir)
        emitter.emit(metric(0))
        wait_until(lambda: emitter.stats().spooled == 1)

        is_out.clear()

        sidecar.wait_for_events(RUN, 1)
        assert emitter.close(FAR_S)


def test_an_exception_in_the_sender_does_not_end_it(endpoint, monkeypatch, caplog):
    """It is logged once, with its traceback, and the next turn goes on."""
    send, left = zmq.Socket.send_multipart, [3]

    def failing(self: zmq.Socket, *args: object, **options: object) -> object:
        if left[0] and threading.current_thread().name == "telemetry-sender":
            left[0] -= 1
            raise ZeroDivisionError
        return send(self, *args, **options)

    monkeypatch.setattr(zmq.Socket, "send_multipart", failing)
    with FakeSidecar(endpoint) as sidecar:
        emitter = Emitter(endpoint, run_id=RUN, source="rank0")
        emitter.emit(metric(0))

        sidecar.wait_for_events(RUN, 1)

        assert emitter.close(FAR_S) and emitter._sender.crashed == 3
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_message_that_no_sidecar_sends_is_skipped_and_logged_once(endpoint, caplog):
    """Row 24: what follows it is received."""
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        Connection(endpoint) as connection,
    ):
        router.setsockopt(zmq.LINGER, 0)
        router.bind(endpoint)
        wait_until(lambda: connection.send(Hello(1, "r", "s", "rank0", SCHEMA)))
        peer, *_ = router.recv_multipart()
        received: list[Message] = []

        for frames in ([b"\xff"], [b"garbage", b"\xc1"], encode(FinAck(1))):
            router.send_multipart([peer, *frames])
        wait_until(lambda: received.extend(connection.receive()) or bool(received))

    assert received == [FinAck(1)]
    (record,) = caplog.records
    assert "skips a message" in record.getMessage()


class BackwardClock(SystemClock):
    """The wall clock steps back an hour with every reading."""

    def __init__(self) -> None:
        self._wall = 10**18

    def wall_ns(self) -> int:
        self._wall -= 3600 * 10**9
        return self._wall


def test_a_wall_clock_that_steps_back_changes_no_order(endpoint):
    """Row 28: both clocks are stored."""
    with FakeSidecar(endpoint) as sidecar:
        emitter = Emitter(endpoint, run_id=RUN, source="rank0", clock=BackwardClock())
        for step in range(10):
            emitter.emit(metric(step))

        assert emitter.close(FAR_S)
        envelopes = sidecar.disk.envelopes(sidecar.disk.key_of(RUN))
    assert steps([envelope.event() for envelope in envelopes]) == list(range(10))
    assert all(a.wall_ns > b.wall_ns for a, b in itertools.pairwise(envelopes))
    assert all(a.mono_ns <= b.mono_ns for a, b in itertools.pairwise(envelopes))


def test_many_threads_may_emit_at_once(endpoint):
    """Each one's events keep their order, and none is lost."""
    with FakeSidecar(endpoint) as sidecar:
        emitter = Emitter(endpoint, run_id=RUN, source="rank0")

        def say(base: int) -> None:
            for step in range(base, base + 500):
                emitter.emit(metric(step))

        threads = [threading.Thread(target=say, args=(base,)) for base in (0, 10_000, 20_000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(FAR_S)

        assert emitter.close(FAR_S)
        found = steps(sidecar.disk.typed(sidecar.disk.key_of(RUN)))
    for base in (0, 10_000, 20_000):
        mine = [step for step in found if base <= step < base + 500]
        assert mine == list(range(base, base + 500))
    assert len(found) == 1500


# --- whole processes

PRELUDE = """
import logging, os, signal, sys, time
from pathlib import Path
from shared.emitter import Emitter
from shared.events import MetricsLogged
from tests.telemetry.waiting import wait_until

def metric(step):
    return MetricsLogged(kind="train", step=step, values={"x": 1.0})

emitter = Emitter(sys.argv[1], run_id="run", source="rank0", spool_dir=Path(sys.argv[2]),
                  close_timeout_s=0.5)
"""


def trainer(script: str, endpoint: str, spool_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as a training process; warnings are errors there, too."""
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            PRELUDE + textwrap.dedent(script),
            endpoint,
            spool_dir,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_forked_worker_emits_under_its_own_session(endpoint, spool_dir):
    """Row 21: the parent is undisturbed; neither's events get into the other's stream."""
    script = """
    for step in range(10):
        emitter.emit(metric(step))
    wait_until(lambda: emitter.stats().acknowledged == 10)
    session = emitter.session
    child = os.fork()
    if not child:
        for step in range(100, 110):
            emitter.emit(metric(step))
        ok = emitter.close(20) and emitter.session != session
        os._exit(0 if ok else 1)
    for step in range(10, 20):
        emitter.emit(metric(step))
    _, status = os.waitpid(child, 0)
    for step in range(20, 30):
        emitter.emit(metric(step))
    ok = emitter.close(20) and status == 0 and emitter.session == session
    print(session, emitter.stats().acknowledged)
    sys.exit(0 if ok else 1)
    """
    with FakeSidecar(endpoint) as sidecar:
        done = trainer(script, endpoint, spool_dir)

        assert (done.returncode, done.stderr) == (0, "")
        session, acknowledged = done.stdout.split()
        parent = (RUN, session, "rank0")
        (child,) = [key for key in sidecar.disk.events if key != parent]
        assert steps(sidecar.disk.typed(parent)) == list(range(30)) and acknowledged == "30"
        assert steps(sidecar.disk.typed(child)) == list(range(100, 110))
        assert {parent, child} <= sidecar.disk.finished


def test_a_spool_is_free_when_its_trainer_died_although_a_worker_lives(endpoint, spool_dir):
    """Row 21: an inherited file descriptor would keep the lock."""
    script = """
    for step in range(10):
        emitter.emit(metric(step))
    wait_until(lambda: emitter.stats().spooled == 10)
    read, write = os.pipe()
    if not os.fork():
        sys.stdout.close(), sys.stderr.close(), os.close(1), os.close(2)
        os.read(0, 1)
        os._exit(0)
    os._exit(0)
    """
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(script), endpoint, spool_dir],
            stdin=read,
            timeout=60,
            check=True,
            capture_output=True,
        )
        assert done.stderr == b""
        assert orphaned(spool_dir) == 10
    finally:
        os.close(write)
        os.close(read)


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("sys.exit(7)", 7),
        ("raise KeyError('mine')", 1),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); os.kill(os.getpid(), 15)", 143),
        ("emitter.close(0.2); sys.exit(3)", 3),
    ],
    ids=["return", "exit", "exception", "SIGTERM", "close"],
)
def test_a_trainer_ends_in_time_with_its_own_code_and_leaves_the_rest(
    endpoint, spool_dir, ending, code
):
    """Row 22: with no sidecar, all that was said is in the spool."""
    script = f"""
    for step in range(100):
        emitter.emit(metric(step))
    {ending}
    """
    began = time.monotonic()

    done = trainer(script, endpoint, spool_dir)

    assert done.returncode == code and time.monotonic() - began < 20
    assert ("mine" in done.stderr) == (code == 1)
    assert orphaned(spool_dir) == 100


def test_emitters_of_one_process_share_the_time_at_its_end(endpoint, spool_dir):
    """Row 22: four of them, without spools: one time-out and a little, not four."""
    script = """
    more = [Emitter(sys.argv[1], run_id=f"run{n}", source="rank0", close_timeout_s=4.0)
            for n in range(4)]
    for each in more:
        each.emit(metric(0))
    """
    began = time.monotonic()

    done = trainer(script, endpoint, spool_dir)

    assert done.returncode == 0 and time.monotonic() - began < 12


def test_a_count_of_memory_that_a_race_spoiled_is_right_again_when_the_queue_is_empty(endpoint):
    """Two threads that add at once may lose one addition."""
    with FakeSidecar(endpoint) as sidecar, Emitter(endpoint, run_id=RUN, source="rank0") as emitter:
        emitter._queue._cost_in -= 7

        emitter.emit(metric(0))
        sidecar.wait_for_events(RUN, 1)

        wait_until(lambda: emitter._queue._cost_in == emitter._queue._cost_out)


def test_a_trainer_that_vanishes_leaves_all_but_its_last_moments(endpoint, spool_dir):
    """Row 22: os._exit runs nothing of ours. What was older than 100 ms is in the spool."""
    script = """
    for step in range(100):
        emitter.emit(metric(step))
    wait_until(lambda: emitter.stats().spooled == 100)
    for step in range(100, 105):
        emitter.emit(metric(step))
    os._exit(9)
    """
    done = trainer(script, endpoint, spool_dir)
    assert (done.returncode, done.stderr) == (9, "")

    with FakeSidecar(endpoint) as sidecar:
        with Emitter(endpoint, run_id=RUN, source="rank0", spool_dir=spool_dir):
            sidecar.wait_for_events(RUN, 100)
            wait_until(lambda: not list(spool_dir.glob("*.spool")))
        found = steps(sidecar.disk.typed(sidecar.disk.key_of(RUN)))
    assert 100 <= len(found) <= 105 and found == list(range(len(found)))


def test_the_null_emitter_does_nothing(endpoint):
    """For a run without telemetry, in the same words."""
    with NullEmitter() as emitter:
        emitter.emit(metric(0))
        emitter.emit(None)
        assert emitter.stats() == EmitterStats() and emitter.close(0)
    assert emitter.run_id == "" and emitter.source == "rank0" and emitter.session
