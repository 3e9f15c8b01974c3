"""What a trainer died of: recorded once in its run, and told by `inspect` in a few lines."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shared.events import AlertChanged, MessageLogged, MetricsLogged, RunStarted
from telemetry.commands.inspect import inspect
from telemetry.commands.last_words import LastWords
from telemetry.commands.stderr_capture import without_secrets
from telemetry.commands.stderr_tail import KEPT_BYTES
from telemetry.exits import STDERR_MAX_CHARS, ExitReport, Exits, tell_exit
from telemetry.ingest.death import events_of, sentence
from telemetry.json_files import read_json
from tests.fakes import ManualClock
from tests.telemetry.sidecar_process import clean_env
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import Producer, Station, finished, metric, read_rows, started

TRAINER = """
import os, signal, sys
from shared.emitter import Emitter
from shared.events import MetricsLogged, RunFinished, RunStarted
how = sys.argv[1]
emitter = Emitter(os.environ["TELEMETRY_ENDPOINT"], run_id="r", source="rank0",
                  spool_dir=os.environ["TELEMETRY_SPOOL_DIR"])
emitter.emit(RunStarted(project="p", name="n", wandb_mode="disabled",
                        launch_id=os.environ["TELEMETRY_LAUNCH_ID"]))
for step in range(5):
    emitter.emit(MetricsLogged(kind="train", step=step, values={"train/loss": 4.0 - step}))
sys.stderr.write("Traceback: CUDA out of memory\\npassword=hunter2\\n")
sys.stderr.flush()
if how == "killed":
    emitter.close()
    os.kill(os.getpid(), signal.SIGKILL)
if how == "failed":
    emitter.emit(RunFinished(status="failed", exit_code=1))
    emitter.close()
    sys.exit(1)
emitter.emit(RunFinished(status="finished", exit_code=0))
emitter.close()
"""


def run_command(data_dir: Path, *command: str, **options: object) -> subprocess.CompletedProcess:
    flags = f"--data-dir={data_dir}", "--sinks=", "--sample-hz=0"
    return subprocess.run(
        [sys.executable, "-m", "telemetry", "run", *flags, "--", *command],
        env=clean_env(**options.pop("env", {})), timeout=90, check=False, **options,
    )  # fmt: skip


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    station = Station(tmp_path, ManualClock())
    yield station
    station.killed()


def begun(station: Station) -> Producer:
    producer = Producer(station)
    producer.hello()
    producer.emit(started(launch_id="launch1"), metric(0))
    station.ingest.commit()
    return producer


def deaths(station: Station) -> list[bool]:
    events = [e for e in station.events() if isinstance(e, AlertChanged)]
    return [event.is_active for event in events if event.name == "trainer_died"]


KILLED = ExitReport(137, 2, "last line")


def test_a_trainer_that_was_killed_has_its_cause_in_the_run_once(station):
    """Signal, OOM kills and its last lines; also after a kill of the sidecar."""
    begun(station)
    tell_exit(station.path, "launch1", KILLED)
    station.wait(10)
    station.ingest.tick()
    station.ingest.commit()
    again = station.restarted()
    again.runs.note_unfinished()
    again.runs.open_noted(10)
    for _ in range(5):
        again.wait(10)
        again.ingest.tick()
        again.ingest.commit()

    said = [e for e in again.events() if isinstance(e, AlertChanged | MessageLogged)]
    assert deaths(again) == [True]
    assert "SIGKILL" in said[0].text and "killed 2 processes" in said[0].text
    assert (said[1].level, said[1].text) == ("stderr", "last line")
    again.killed()


def test_a_run_that_said_itself_that_it_failed_waits_a_moment_for_the_cause(station):
    """Its parent can tell only afterwards; a parent that was killed is not waited for."""
    producer = begun(station)
    producer.emit(finished("failed"))
    producer.fin()
    station.ingest.commit()
    station.ingest.tick()
    waits = not station.runs.open("r").is_ended
    tell_exit(station.path, "launch1", ExitReport(1, 0, "ValueError: x"))
    for _ in range(3):
        station.ingest.tick()
        station.ingest.commit()

    assert waits and deaths(station) == [True]
    assert read_json(station.path / "runs/r/run.json")["state"] == "ended"


def test_without_a_word_of_its_parent_it_ends_all_the_same(station):
    """After five seconds."""
    producer = begun(station)
    producer.emit(finished("failed"))
    producer.fin()
    station.ingest.commit()
    station.ingest.tick()
    station.wait(6)
    station.ingest.tick()

    assert read_json(station.path / "runs/r/run.json")["state"] == "ended"
    assert deaths(station) == []


def test_a_new_start_ends_the_death_of_the_former_one(station):
    """It is over, and a second death is said again."""
    begun(station)
    tell_exit(station.path, "launch1", KILLED)
    station.wait(10)
    station.ingest.tick()
    station.ingest.commit()
    producer = Producer(station, "s2", peer=b"again")
    producer.hello()
    producer.emit(started(launch_id="launch2"))
    station.ingest.commit()
    station.ingest.tick()
    station.ingest.commit()

    assert deaths(station) == [True, False]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (ExitReport(3), "exit code 3"),
        (ExitReport(137, 1), "ended by SIGKILL; meanwhile the kernel killed 1 processes"),
        (ExitReport(137, 0), "ended by SIGKILL, not by the kernel"),
        (ExitReport(137, None), "ended by SIGKILL"),
        (ExitReport(139), "ended by SIGSEGV"),
        (ExitReport(255), "exit code 255"),
        (ExitReport(127), "exit code 127: it was not found"),
    ],
)
def test_the_cause_is_one_sentence(report, expected):
    """Nothing is claimed that is not known."""
    assert sentence(report).startswith(expected)
    assert len(list(events_of(report))) == 1


@pytest.mark.parametrize(
    "text", ['{"exit_code": 300}', '{"exit_code": "x"}', "[", '{"exit_code": 1, "stderr": 7}', "{}"]
)
def test_a_damaged_report_is_no_report(tmp_path, text):
    """It may have been edited."""
    (tmp_path / "exits").mkdir()
    (tmp_path / "exits/launch1.json").write_text(text)
    exits = Exits(tmp_path)
    exits.look()

    assert exits.report_of("launch1") is None and exits.code_of("launch1") is None


# --- standard error


def test_secrets_and_controls_are_not_in_the_last_lines():
    """Of variables, of URLs, and by their names; of a progress bar the last state stays."""
    data = b"10%\r50%\r100%\n\x1b[31mred\nkey s3cr3tvalue\nhttp://u:pw@h/\napi_key=abc\n\xff\n"

    text = without_secrets(data, {"WANDB_API_KEY": "s3cr3tvalue", "HF_TOKEN": "ab"})

    assert "s3cr3t" not in text and ":pw@" not in text and "abc" not in text
    assert "\x1b" not in text and text.splitlines()[0] == "100%"


def test_the_last_lines_are_bounded_and_the_newest_stay():
    """Escapes make them longer."""
    data = b"".join(b"\x1b" * 90 + b"%d\n" % number for number in range(1000))[-KEPT_BYTES:]

    text = without_secrets(data, {})

    assert len(text) <= STDERR_MAX_CHARS and text.endswith("999")
    ExitReport(1, None, text)


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_every_byte_of_standard_error_comes_through_unchanged(tmp_path, size):
    """Of any kind; the exit code as well."""
    every = bytes(range(256)) * (size // 256 + 1)
    code = (
        "import os, sys; os.write(1, b'out'); "
        f"sys.stderr.buffer.write(bytes(range(256)) * {size // 256 + 1}); sys.exit(7)"
    )
    done = run_command(tmp_path / "d", sys.executable, "-c", code, capture_output=True)

    assert done.returncode == 7 and done.stdout == b"out"
    assert every in done.stderr


def test_a_command_on_a_terminal_still_has_one(tmp_path):
    """Or its progress bars would vanish."""
    ours, theirs = pty.openpty()
    code = "import sys; sys.stderr.write(f'is_a_tty={sys.stderr.isatty()}\\n')"
    done = run_command(tmp_path / "d", sys.executable, "-c", code, stderr=theirs)
    os.close(theirs)
    text = os.read(ours, 65536).decode()
    os.close(ours)

    assert done.returncode == 0 and "is_a_tty=True" in text


def passers_on(launcher: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(launcher.pid).children()
    return [child for child in children if "telemetry.commands.stderr_tail" in child.cmdline()]


def launched(data_dir: Path, code: str) -> subprocess.Popen[bytes]:
    flags = f"--data-dir={data_dir}", "--sinks=", "--sample-hz=0", "--drain-grace-s=3"
    command = [sys.executable, "-m", "telemetry", "run", *flags, "--", sys.executable, "-c", code]
    return subprocess.Popen(command, env=clean_env(), stderr=subprocess.PIPE)


def test_a_command_outlives_telemetry_run_though_it_writes_to_standard_error(tmp_path):
    """Killed with SIGKILL; the command's later lines come through, and it ends by itself."""
    go, done = tmp_path / "go", tmp_path / "done"
    code = (
        "import pathlib, sys, time\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        "print('after the kill', file=sys.stderr, flush=True)\n"
        f"pathlib.Path({str(done)!r}).write_text('x')"
    )
    launcher = launched(tmp_path / "d", code)
    wait_until(lambda: passers_on(launcher) and len(psutil.Process(launcher.pid).children()) > 2)
    launcher.kill()
    launcher.wait()
    go.write_text("")
    wait_until(done.exists)
    said = launcher.stderr.read()
    launcher.stderr.close()

    assert b"after the kill" in said


def test_a_process_that_passes_on_and_is_frozen_delays_the_end_by_little(tmp_path):
    """The exit code is the command's own."""
    go = tmp_path / "go"
    code = (
        "import pathlib, sys, time\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        "print('bye', file=sys.stderr); sys.exit(5)"
    )
    launcher = launched(tmp_path / "d", code)
    (frozen,) = wait_until(lambda: passers_on(launcher))
    frozen.suspend()
    go.write_text("")
    began_s = time.monotonic()
    exit_code = launcher.wait(60)
    took_s = time.monotonic() - began_s
    frozen.send_signal(signal.SIGCONT)
    launcher.stderr.close()

    assert exit_code == 5 and took_s < 30


# --- the report


def test_the_report_has_the_last_rows_the_last_minute_and_the_open_alerts():
    """True values; what is older than a minute is not in it."""
    made = RowMaker()
    words = LastWords()
    start_ns = 10**18
    made.append(RunStarted(project="p", name="n"), wall_ns=start_ns)
    for second, percent in ((0, 1.0), (100, 50.0), (130, 70.0)):
        made.append(
            MetricsLogged(kind="hardware", values={"cpu_percent": percent}),
            "hardware:n1", wall_ns=start_ns + second * 10**9,
        )  # fmt: skip
    for step in range(9):
        made.append(MetricsLogged(kind="train", step=step, values={"train/loss": 1.5}))
    made.append(AlertChanged(name="gpu_lost", subject="gpu/0", text="gone"), "hardware:n1")
    for event in events_of(ExitReport(139, None, "a\nb")):
        made.append(event, "sidecar")
    for row in made.rows:
        words.see(row, row.envelope.event())

    lines = list(words.lines("failed"))
    assert lines[0] == "alert: gpu_lost gpu/0 (warning): gone"
    assert "SIGSEGV" in lines[1]
    assert lines[2:5] == [f"  row: step {step}  train/loss 1.5" for step in (6, 7, 8)]
    assert lines[5] == "  last minute: cpu from 50 to 70%, at the end 70%"
    assert lines[6:] == ["  stderr: a", "  stderr: b"]


def test_a_run_that_went_well_has_no_report():
    """And one of which nothing is known says that."""
    assert list(LastWords().lines("finished")) == []
    assert "not known" in next(LastWords().lines("lost"))


@pytest.mark.parametrize(
    ("how", "code", "cause"), [("killed", 137, "SIGKILL"), ("failed", 1, "exit code 1")]
)
def test_the_cause_of_a_death_under_run_is_told_by_inspect(tmp_path, capsys, how, code, cause):
    """With its last lines, without its secrets, and exactly once."""
    done = run_command(tmp_path / "d", sys.executable, "-c", TRAINER, how, capture_output=True)
    inspect(tmp_path / "d/runs/r")

    out = capsys.readouterr().out
    rows = read_rows(tmp_path / "d/runs/r")
    said = [e for row in rows if isinstance(e := row.envelope.event(), AlertChanged)]
    assert done.returncode == code and b"password=hunter2" in done.stderr
    assert "died: trainer_died rank0: " in out and cause in out
    assert "stderr: Traceback: CUDA out of memory" in out and "hunter2" not in out
    assert "row: step 4  train/loss 0" in out
    assert [event.name for event in said] == ["trainer_died"]


def test_a_run_that_ended_well_under_run_says_nothing_of_a_death(tmp_path, capsys):
    """Its standard error is nobody's business."""
    done = run_command(tmp_path / "d", sys.executable, "-c", TRAINER, "well", capture_output=True)
    inspect(tmp_path / "d/runs/r")

    assert done.returncode == 0 and "died" not in capsys.readouterr().out
