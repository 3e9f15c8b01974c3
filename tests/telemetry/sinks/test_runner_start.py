"""The runner before its first row: a run is carried once it has a name and a journal."""

from __future__ import annotations

import threading
from pathlib import Path

from shared.events import encode_event, join_events
from shared.ids import StreamId
from telemetry.errors import EXIT_OK
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json
from telemetry.sinks.base import SinkContext
from telemetry.sinks.runner import Reporter, SinkJob, run_sink
from tests.telemetry.sinks.lines_sink import LinesSink, Trouble, lines
from tests.telemetry.wire_client import metric


class JournalOnWait(threading.Event):
    """A stop that never comes; the first wait for it is when the journal is made."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waits += 1
        if self.waits == 1:
            with JournalWriter(self.directory) as writer:
                payload = join_events([encode_event(metric(0), 1, 1)])
                writer.append(StreamId("r", "s1", "rank0"), 0, 1, payload)
                writer.sync()
        return False


def carrying_lines(_: str, context: SinkContext) -> LinesSink:
    return LinesSink(context, Trouble())


def test_a_sink_waits_for_the_journal_of_its_run(tmp_path: Path) -> None:
    """A crash, or a copy under way, can leave run.json without a segment for a while."""
    write_json(tmp_path / "run.json", {"run_id": "r", "name": "n", "state": "ended"})
    stop = JournalOnWait(tmp_path / "journal")

    code = run_sink(
        SinkJob("lines", tmp_path, tmp_path, True, {}, carrying_lines), stop, Reporter(None)
    )

    assert code == EXIT_OK and stop.waits == 1
    assert lines(tmp_path / "lines.jsonl") == [0]
