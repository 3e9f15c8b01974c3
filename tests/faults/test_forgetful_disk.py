"""A model of everything that must survive, against a disk that forgets what was not synced.

The machine plays producer, journal writer, one sink and its cursor. After any
mixture of appends, syncs, full disks, failing syncs, kills and power cuts, also
in the middle of a write, of a rotation, of a recovery or of a commit, it compares
what is on the disk with what was promised.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shared.events import MetricsLogged, encode_event, join_events
from shared.ids import StreamId
from telemetry.journal.layout import segments
from telemetry.journal.reader import JournalReader
from telemetry.journal.writer import JournalFault, JournalFull, JournalWriter
from telemetry.sinks.base import Position
from telemetry.sinks.cursor import Cursor
from tests.faults.forgetful_disk import BLOCK_BYTES, Died, ForgetfulDisk

RUN = "r"
SOURCES = ("rank0", "rank1")
SEGMENT_MAX_BYTES = 700


def stream(source: str) -> StreamId:
    """The stream of a source; each has a session of its own."""
    return StreamId(RUN, f"s-{source}", source)


Event = tuple[str, int]
"""(source, seq): an event says itself which it is."""


def packed(source: str, first_seq: int, count: int) -> bytes:
    events = [
        MetricsLogged(kind="train", step=first_seq + n, values={source: 1.0}) for n in range(count)
    ]
    return join_events([encode_event(event, 1, 1) for event in events])


class Crashes(RuleBasedStateMachine):
    """next_seq, acknowledged and seen are what the outside world knows: they survive."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory(prefix="tm-disk-")
        self.place = Path(self.temporary.name).resolve()
        self.run_dir = self.place / "runs" / RUN
        self.disk = ForgetfulDisk(self.place).__enter__()
        self.writer: JournalWriter | None = None
        self.cursor: Cursor | None = None
        self.sink_fd = -1
        self.sink_row = self.committed_row = 0
        self.next_seq = dict.fromkeys(SOURCES, 0)
        self.acknowledged = dict.fromkeys(SOURCES, -1)
        self.seen: dict[int, Event] = {}
        """Rows that a reader was allowed to see, for ever the same."""
        self.has_news = False
        self.is_dark = False
        """The power was cut, and nothing was started since."""

    @initialize()
    def first_start(self) -> None:
        self.start()

    # --- the journal

    @precondition(lambda self: self.writer is not None)
    @rule(
        frames=st.lists(
            st.tuples(st.sampled_from(SOURCES), st.integers(1, 4)), min_size=1, max_size=4
        ),
        then=st.sampled_from(("nothing", "sync", "sync", "sync and carry")),
    )
    def append(self, frames: list[tuple[str, int]], then: str) -> None:
        """Mostly with a sync: where nothing was promised yet, nothing can be broken."""
        for source, count in frames:
            seq = self.next_seq[source]
            self.writer.append(stream(source), seq, count, packed(source, seq, count))
            self.next_seq[source] += count
        if then != "nothing":
            self.sync()
        if then == "sync and carry" and self.writer is not None:
            self.carry()

    @precondition(lambda self: self.writer is not None)
    @rule()
    def sync(self) -> None:
        """What is acknowledged after it must be there for ever."""
        self.has_news = True
        try:
            with self.dying():
                self.writer.sync()
                for source in SOURCES:
                    self.acknowledged[source] = self.writer.durable_seq(stream(source))
                if self.disk.room == 0:
                    # All is on disk, and the mark did not fit: the next sync publishes it.
                    self.disk.room = None
                    self.writer.sync()
        except JournalFull:
            self.disk.room = None
        except JournalFault:
            self.stop()

    @precondition(lambda self: self.writer is not None and self.seen)
    @rule(room=st.integers(0, 400))
    def fill_the_disk(self, room: int) -> None:
        """A write that comes is short, or has no room at all."""
        self.disk.room = room

    @precondition(lambda self: self.writer is not None and self.seen)
    @rule(count=st.integers(1, 2))
    def let_syncs_fail(self, count: int) -> None:
        self.disk.failing_syncs = count

    @precondition(lambda self: self.writer is not None and self.seen)
    @rule(calls=st.integers(0, 12))
    def let_it_die_soon(self, calls: int) -> None:
        """At one of the next system calls, wherever that is."""
        self.disk.calls_left = calls

    # --- a sink with its cursor

    @precondition(lambda self: self.writer is not None)
    @rule()
    def carry(self) -> None:
        """Write what can be read, each row a line; then make it durable, then commit."""
        try:
            self.write_and_commit()
        except OSError:
            self.close_sink()  # only opening it anew tells what reached the disk

    def write_and_commit(self) -> None:
        with self.dying():
            self.open_sink()
            assert self.cursor is not None
            for row, (source, seq) in self.readable(self.sink_row):
                self.seen[row] = source, seq
                os.write(self.sink_fd, b"%d %s %d\n" % (row, source.encode(), seq))
                self.sink_row = row + 1
            os.fsync(self.sink_fd)
            length = os.fstat(self.sink_fd).st_size
            self.cursor.commit(Position(self.sink_row, {"length": length}))
            self.committed_row = self.sink_row

    def open_sink(self) -> None:
        """As sinks do: what is behind the committed length is cut, and written again."""
        if self.cursor is not None:
            return
        path = self.place / "sink.txt"
        self.cursor = Cursor(self.run_dir, "lines", RUN)
        assert self.cursor.position.row >= self.committed_row, "a commit is forgotten"
        length = self.cursor.position.state.get("length", 0)
        self.sink_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        assert os.fstat(self.sink_fd).st_size >= length, "the cursor is ahead of its sink"
        os.ftruncate(self.sink_fd, length)
        # The file's name has to be durable as well, before a cursor speaks of it.
        self.sync_place()
        self.sink_row = self.cursor.position.row

    def sync_place(self) -> None:
        fd = os.open(self.place, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # --- ends and starts

    @precondition(lambda self: self.writer is not None)
    @rule()
    def kill(self) -> None:
        """The process is gone, what it had handed to the kernel is not."""
        self.stop()

    @precondition(lambda self: not self.is_dark)
    @rule(dice=st.randoms(use_true_random=False))
    def cut_the_power(self, dice: random.Random) -> None:
        self.stop()
        self.disk.power_cut(dice)
        self.is_dark = True

    @precondition(lambda self: self.writer is None)
    @rule(calls=st.none() | st.integers(0, 20))
    def start(self, calls: int | None = None) -> None:
        """Recover; perhaps die in the middle of that, too. Then send again what is missing."""
        self.has_news, self.is_dark = True, False
        self.disk.calls_left, self.disk.room, self.disk.failing_syncs = calls, None, 0
        with self.dying():
            self.writer = JournalWriter(self.run_dir / "journal", SEGMENT_MAX_BYTES)
        self.disk.calls_left = None
        if self.writer is not None:
            for source in SOURCES:
                self.next_seq[source] = self.writer.appended_seq(stream(source)) + 1

    @precondition(lambda self: self.writer is None)
    @rule()
    def read_what_nobody_writes(self) -> None:
        """As replay and inspect do. What they come to see is what a writer finds later."""
        found = dict(self.readable(0, is_recorded=True))
        self.check(found)
        self.seen = found

    def stop(self) -> None:
        self.disk.calls_left, self.disk.room, self.disk.failing_syncs = None, None, 0
        if self.writer is not None:
            self.writer.close()
        self.writer = None
        self.close_sink()

    def close_sink(self) -> None:
        if self.cursor is not None:
            self.cursor.close()
        if self.sink_fd >= 0:
            os.close(self.sink_fd)
        self.cursor, self.sink_fd = None, -1

    @contextlib.contextmanager
    def dying(self):
        try:
            yield
        except Died:
            self.stop()

    # --- what must be true

    @invariant()
    def what_was_acknowledged_and_seen_is_there_once_and_in_order(self) -> None:
        """No row number is ever given twice, and no row that could be read is lost."""
        if self.writer is None or not self.has_news:
            return
        self.has_news = False
        found = dict(self.readable(0))
        self.check(found)
        self.seen = found

    def check(self, found: dict[int, Event]) -> None:
        assert found | self.seen == found, "a row that was read is lost, or another one now"
        assert list(found) == list(range(len(found)))
        for source in SOURCES:
            seqs = [seq for of, seq in found.values() if of == source]
            assert seqs == list(range(len(seqs)))
            assert len(seqs) > self.acknowledged[source], "an acknowledged event is lost"
            assert len(seqs) <= self.next_seq[source], "an event was invented"

    @invariant()
    def what_the_sink_committed_is_every_row_once(self) -> None:
        if self.cursor is None:
            return
        position = self.cursor.position
        data = os.pread(self.sink_fd, position.state.get("length", 0), 0)
        lines = [line.split() for line in data.decode().splitlines()]
        rows = {int(row): (source, int(seq)) for row, source, seq in lines}
        assert list(rows) == list(range(position.row)) and len(lines) == len(rows)
        assert rows.items() <= self.seen.items()

    def readable(self, first_row: int, *, is_recorded: bool = False) -> list[tuple[int, Event]]:
        directory = self.run_dir / "journal"
        if not segments(directory):
            return []
        found: list[tuple[int, Event]] = []
        with JournalReader(directory, first_row, is_recorded=is_recorded) as reader:
            while (batch := reader.read()).rows or not batch.is_end:
                assert batch.damage == [], "a crash is no damage"
                for row in batch.rows:
                    event = row.envelope.event()
                    assert isinstance(event, MetricsLogged) and event.step == row.seq
                    assert event.values == {row.source: 1.0}
                    found.append((row.row, (row.source, row.seq)))
        return found

    def teardown(self) -> None:
        self.stop()
        self.disk.__exit__()
        self.temporary.cleanup()


def explore(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Crashes,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_journal_and_cursors_survive_a_disk_that_forgets() -> None:
    """Acknowledged is on disk, once and in order, and no cursor is ahead of its sink."""
    explore(150, 30)


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_journal_and_cursors_survive_a_disk_that_forgets_again_and_again() -> None:
    """The same, with longer stories."""
    explore(400, 40)


def test_a_hole_in_what_was_not_synced_costs_nobody_his_place(tmp_path: Path) -> None:
    """The disk has a later block of an unfinished write and not an earlier one. What lies
    behind the hole is sent again, with what was in it: seqs go on where the hole is."""
    journal = tmp_path / "journal"
    with JournalWriter(journal) as writer:
        writer.append(StreamId(RUN, "s", "rank0"), 0, 1, packed("rank0", 0, 1))
        writer.sync()
        synced = segments(journal)[0].path.stat().st_size
        mark = (journal / "durable").read_bytes()
        for seq in (1, 2, 3):
            writer.append(StreamId(RUN, "s", "rank0"), seq, 1, packed("rank0", seq, 1))
            writer.sync()
    path = segments(journal)[0].path
    data = bytearray(path.read_bytes())
    data[synced : synced + BLOCK_BYTES] = bytes(BLOCK_BYTES)
    path.write_bytes(data)
    (journal / "durable").write_bytes(mark)

    with JournalWriter(journal) as writer:
        appended, next_row = writer.appended_seq(StreamId(RUN, "s", "rank0")), writer.next_row

    assert (appended, next_row) == (0, 1)
    (saved,) = (tmp_path / "quarantine").iterdir()
    assert saved.read_bytes() == bytes(data[synced:])
