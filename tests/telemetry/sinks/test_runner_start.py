"""The runner before its first row: a run is carried once it has a name and a journal."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared.events import encode_event, join_events
from shared.ids import StreamId
from telemetry.errors import EXIT_BACKLOG, EXIT_OK
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


@pytest.mark.parametrize("is_there", [True, False], ids=["without a name", "without a file"])
def test_a_run_that_is_not_shown_yet_is_waited_for(tmp_path: Path, is_there: bool) -> None:
    """It gets its name soon, or its id. Stopped before that, the sink leaves no cursor."""
    with JournalWriter(tmp_path / "journal"):
        pass
    if is_there:
        write_json(tmp_path / "run.json", {"run_id": "r", "state": "running"})
    stop = threading.Event()
    stop.set()

    code = run_sink(SinkJob("lines", tmp_path, tmp_path, True, {}), stop, Reporter(None))

    assert code == EXIT_OK and not (tmp_path / "cursors").exists()


WATCHED = """
import sys, threading, time
from telemetry.sinks import runner
runner.ORPHAN_GRACE_S = float(sys.argv[1])
stop = threading.Event()
runner.stop_with_stdin(stop)
print("ready", flush=True)
print(stop.wait(0.3), flush=True)
print(stop.wait(30), flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("grace_s", "closing_s", "code"), [(20, 0.2, EXIT_OK), (0.1, 20, EXIT_BACKLOG)]
)
def test_a_sink_whose_supervisor_is_gone_stops_by_itself_or_is_ended(
    grace_s: float, closing_s: float, code: int
) -> None:
    """What is said on standard input stops nothing; its end does. A sink that hangs then would
    keep its lock."""
    command = [sys.executable, "-c", WATCHED, str(grace_s), str(closing_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"still here")
        process.stdin.flush()
        assert process.stdout.readline() == b"False\n"
        process.stdin.close()

        assert process.stdout.readline() == b"True\n"
        assert process.wait(timeout=15) == code
