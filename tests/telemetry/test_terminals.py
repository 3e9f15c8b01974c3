"""Commands in any terminal: encodings, closed streams, readers that go away, forged lines."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shared.events import MessageLogged, RunFinished, RunStarted, encode_event, join_events
from shared.ids import StreamId
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json
from telemetry.logs import CleanFormatter
from tests.telemetry.sidecar_process import clean_env

HOSTILE = "läuft \U0001f600 \x1b[2J\r\n\u202egnp"
ENCODINGS = {
    "ascii": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "utf-16": {"PYTHONIOENCODING": "utf-16"},
    "narrow": {"COLUMNS": "1"},
    "dumb": {"TERM": "dumb", "NO_COLOR": "1"},
    "no home": {"HOME": ""},
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run whose names are what no terminal should get."""
    events = [
        RunStarted(project="p", name=HOSTILE, wandb_mode="offline", notes=HOSTILE),
        MessageLogged(level=HOSTILE, text=HOSTILE),
        RunFinished(status="finished", exit_code=0),
    ]
    directory = tmp_path / "data" / "runs" / "r"
    with JournalWriter(directory / "journal") as writer:
        packed = [encode_event(event, 10**18, 1) for event in events]
        writer.append(StreamId("r", "s1", "rank0"), 0, len(packed), join_events(packed))
        writer.sync()
    write_json(
        directory / "run.json",
        {"run_id": "r", "name": HOSTILE, "state": "ended", "status": "finished"},
    )
    return directory


def shell(script: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", script.replace("TELEMETRY", f"{sys.executable} -m telemetry")],
        capture_output=True, env=clean_env(**env), timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_prints_in_every_encoding(run_dir, tmp_path, encoding):
    """What a terminal can't show is escaped; a traceback would have the code for damage."""
    replay = f"TELEMETRY replay {run_dir} --out {tmp_path}/out --to"
    for command in (f"TELEMETRY inspect {run_dir}", f"{replay} console", f"{replay} tensorboard"):
        done = shell(command, **ENCODINGS[encoding])

        assert done.returncode == 0, (command, done.stderr)
        assert b"Traceback" not in done.stderr
        assert not {b"\x1b", b"\r"} & {bytes([c]) for c in done.stdout + done.stderr}


@pytest.mark.parametrize("redirect", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "| head -0", "| true"])
def test_closed_streams_and_readers_that_have_seen_enough_are_no_error(run_dir, redirect):
    """They end quietly, with 0."""
    done = shell(f"set -o pipefail; TELEMETRY inspect {run_dir} {redirect}")

    assert (done.returncode, done.stderr) == (0, b"")


def test_output_that_can_not_be_written_is_one_line_and_4(run_dir):
    """Not 1: that is for damage."""
    done = shell(f"TELEMETRY inspect {run_dir} > /dev/full")

    assert done.returncode == 4
    assert done.stderr.splitlines() == [
        b"telemetry: the output can't be written: [Errno 28] No space left on device"
    ]


def test_help_can_be_cut_short(run_dir):
    """`serve --help | head`."""
    done = shell("set -o pipefail; TELEMETRY serve --help | head -1; TELEMETRY --help > /dev/full")

    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


def test_nobody_can_forge_a_line_of_the_log():
    """A name is part of a line, whatever is in it; a traceback is indented."""
    text = "a\r\ntelemetry: b\x1b[2J\u202e"
    try:
        raise ValueError(text)
    except ValueError:
        record = logging.LogRecord("n", 20, "p", 1, "run=%s", (text,), sys.exc_info())

    lines = CleanFormatter().format(record).splitlines()

    assert lines[0] == r"telemetry: run=a\x0d\x0atelemetry: b\x1b[2J\u202e"
    assert all(line.startswith("  ") and line.isprintable() for line in lines[1:])


def test_in_a_locale_without_letters_a_path_may_have_them(tmp_path):
    """The socket, the lock file and every sink are there, and the run is recorded."""
    short = tempfile.mkdtemp(prefix="tm-", dir="/tmp")
    data = f"{short}/dä"
    script = (
        "from shared.emitter import Emitter; from shared.events import RunStarted\n"
        "with Emitter(run_id='r') as e: e.emit(RunStarted(wandb_mode='offline'))"
    )
    flags = "--sample-hz=0 --no-host-run --drain-grace-s=30"
    command = f'TELEMETRY run --data-dir {data} {flags} -- {sys.executable} -c "{script}"'

    done = shell(command, **ENCODINGS["C locale"])
    told = shell(f"TELEMETRY inspect {data}/runs/r", **ENCODINGS["C locale"])

    shutil.rmtree(short)
    assert (done.returncode, told.returncode) == (0, 0), (done.stderr, told.stderr)
    assert b"Traceback" not in done.stderr and b"finished" in told.stdout
    assert told.stdout.count(b"has all of it") == 2
