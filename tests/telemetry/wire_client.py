"""A producer as ingest sees it: messages without a socket, and the journal read back.

In: events, from any number of producers.
Out: what ingest answered, and what the journals hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Raw

from shared.events import (
    Event,
    MetricsLogged,
    RunFinished,
    RunStarted,
    encode_event,
    join_events,
)
from shared.wire import SCHEMA, Ack, Data, Fin, FinAck, Hello, Message, Nack, Welcome
from telemetry.exits import Ends
from telemetry.ingest.host_run import HostRun
from telemetry.ingest.ingest import Ingest
from telemetry.ingest.runs import Runs
from telemetry.ingest.streams import IncomingStream, StreamTable
from telemetry.journal.reader import JournalReader
from telemetry.journal.rows import Row
from telemetry.journal.writer import JournalWriter
from tests.fakes import ManualClock

SECOND_NS = 1_000_000_000
LOST_AFTER_S = 300.0


def started(**fields: object) -> RunStarted:
    return RunStarted(**({"project": "p", "name": "n", "host": "node1"} | fields))


def metric(step: int) -> MetricsLogged:
    return MetricsLogged(kind="train", step=step, values={"train/loss": 1.0 / (step + 1)})


def finished(status: str = "finished") -> RunFinished:
    return RunFinished(status=status, exit_code=0)


def packed(*events: Event | bytes) -> bytes:
    """A frame's array; bytes go in as they are."""
    return join_events([e if isinstance(e, bytes) else encode_event(e, 1, 1) for e in events])


class Journals:
    """Opens the journals of a station; they fail as they are told to."""

    def __init__(self) -> None:
        self.open_error: Exception | None = None
        self.sync_errors: dict[str, Exception] = {}
        """Errors of syncs, by run; "*" for those of every run."""
        self.on_open: Callable[[], object] = lambda: None

    @contextlib.contextmanager
    def failing(self, run_id: str, error: Exception) -> Iterator[None]:
        """Let the journal of one run fail to sync meanwhile."""
        self.sync_errors[run_id] = error
        yield
        del self.sync_errors[run_id]

    def open(self, directory: Path) -> JournalWriter:
        self.on_open()
        if self.open_error is not None:
            raise self.open_error
        return _Journal(directory, self)


class _Journal(JournalWriter):
    def __init__(self, directory: Path, journals: Journals) -> None:
        super().__init__(directory)
        self._journals = journals

    def sync(self) -> None:
        errors = self._journals.sync_errors
        error = errors.get(self.directory.parent.name) or errors.get("*")
        if error is not None:
            raise error
        super().sync()


class Station:
    """Ingest over a directory, as one start of the sidecar; `restarted` is the next one."""

    def __init__(
        self,
        path: Path,
        clock: ManualClock,
        *,
        host_run: bool = True,
        open_runs_max: int = 4_000,
        streams: StreamTable[IncomingStream] | None = None,
        ends: Callable[[], Ends] = Ends,
    ) -> None:
        self.path = path
        self.clock = clock
        self.is_host_run_enabled = host_run
        self.journals = Journals()
        session = f"sidecar-{clock.mono}"
        self.runs = Runs(path, session, clock, open_journal=self.journals.open)
        self.host_run = HostRun("node1", "offline", is_enabled=host_run)
        self.make_ends, self.ends = ends, ends()
        self.ingest = Ingest(
            self.runs, clock, self.host_run, LOST_AFTER_S, open_runs_max, streams, self.ends
        )
        self.runs.note_unfinished()
        while self.runs.open_noted(10):
            pass

    def killed(self) -> None:
        """The end of the process: what was not synced is gone."""
        for run in self.runs:
            run.close()
        self.ends.close()

    def restarted(self) -> Station:
        self.killed()
        self.clock.mono += 1
        return Station(
            self.path, self.clock, host_run=self.is_host_run_enabled, ends=self.make_ends
        )

    def wait(self, seconds: float) -> None:
        """Time passes, a tick each half second at most of which nobody says anything."""
        self.clock.mono += int(seconds * 1e9)
        self.clock.wall += int(seconds * 1e9)

    def settle(self) -> None:
        """A few turns of the service: commits and ticks."""
        for _ in range(3):
            self.ingest.commit()
            self.ingest.tick()

    def rows(self, run_id: str = "r") -> list[Row]:
        return read_rows(self.path / "runs" / run_id)

    def events(self, run_id: str = "r") -> list[Event | None]:
        return [row.envelope.event() for row in self.rows(run_id)]

    def steps(self, run_id: str = "r", source: str = "rank0") -> list[int | None]:
        """The steps of a source's metrics, in the order of the journal."""
        found = [(row.source, row.envelope.event()) for row in self.rows(run_id)]
        return [e.step for s, e in found if s == source and isinstance(e, MetricsLogged)]


@dataclass
class Producer:
    """One (run_id, session, source) on one connection."""

    station: Station
    session: str = "s1"
    run_id: str = "r"
    source: str = "rank0"
    peer: bytes = b"peer"
    number: int = 1
    next_seq: int = 0
    late: bool = False
    replies: list[Message] = field(default_factory=list)

    def say(self, message: Message) -> list[Message]:
        """Send one message, and return what is answered to this peer at once."""
        replies = [m for to, m in self.station.ingest.handle(self.peer, message) if to == self.peer]
        self.replies += replies
        return replies

    def hello(self, first_seq: int = 0) -> Message:
        answer, *_ = self.say(
            Hello(self.number, self.run_id, self.session, self.source, SCHEMA, first_seq, self.late)
        )
        if isinstance(answer, Welcome):
            self.next_seq = answer.next_seq
        return answer

    def frame(self, base_seq: int, payload: bytes) -> list[Message]:
        return self.say(Data(self.number, base_seq, Raw(payload)))

    def emit(self, *events: Event | bytes) -> list[Message]:
        """Send events as the next frame."""
        replies = self.frame(self.next_seq, packed(*events))
        self.next_seq += len(events)
        return replies

    def fin(self, next_seq: int | None = None) -> list[Message]:
        return self.say(Fin(self.number, self.next_seq if next_seq is None else next_seq))

    def committed(self) -> list[Message]:
        """What a commit answers to this stream."""
        replies = [m for to, m in self.station.ingest.commit() if to == self.peer]
        return [m for m in replies if getattr(m, "stream", None) == self.number]


def acks(messages: list[Message]) -> list[int]:
    return [m.durable_seq for m in messages if isinstance(m, Ack)]


def nacks(messages: list[Message]) -> list[int]:
    return [m.seq for m in messages if isinstance(m, Nack)]


def is_fin_acked(messages: list[Message]) -> bool:
    return any(isinstance(m, FinAck) for m in messages)


def read_rows(run_dir: Path) -> list[Row]:
    """Every row of a run's journal; damage fails."""
    rows: list[Row] = []
    with JournalReader(run_dir / "journal") as reader:
        while (batch := reader.read()).rows or not batch.is_end:
            assert batch.damage == []
            rows += batch.rows
    return rows
