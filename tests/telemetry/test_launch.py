"""`run -- CMD`: the command comes first, whatever becomes of its sidecar."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.emitter import Emitter
from shared.events import RunStarted
from telemetry.commands.own_sidecar import Sidecar
from telemetry.config import ServeConfig
from telemetry.datadir import holder_of, is_held
from telemetry.json_files import read_json
from tests.telemetry.sidecar_process import QUIET, SidecarProcess, clean_env
from tests.telemetry.test_gateway import has_ipv6
from tests.telemetry.waiting import wait_until

EMIT = """
import os, time
from shared.emitter import Emitter
from shared.events import RunStarted, RunFinished
from pathlib import Path
spool = Path(os.environ["TELEMETRY_SPOOL_DIR"])
endpoint = os.environ["TELEMETRY_ENDPOINT"]
with Emitter(endpoint, run_id="r", source="rank0", spool_dir=spool) as emitter:
    emitter.emit(RunStarted(project="p", name="n"))
"""
FINISH = '    emitter.emit(RunFinished(status="finished"))\n'


def launched(data_dir: Path, *command: str) -> subprocess.Popen[str]:
    """`run -- command` at work."""
    flags = ["--data-dir", str(data_dir), *QUIET, "--drain-grace-s=5"]
    return subprocess.Popen(
        [sys.executable, "-m", "telemetry", "run", *flags, "--", *command],
        env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(data_dir: Path, *command: str) -> subprocess.CompletedProcess[str]:
    process = launched(data_dir, *command)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_the_exit_code_is_the_commands_own(place, script, code):
    """128 + n on a signal, as a shell has it."""
    done = run(place / "data", "sh", "-c", script)

    assert done.returncode == code, done.stderr
    assert not is_held(place / "data")


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/", 126)])
def test_a_command_that_can_not_be_run_is_named(place, command, code):
    """As a shell has it."""
    done = run(place / "data", command)

    assert done.returncode == code and repr(command) in done.stderr


def test_what_the_command_emits_is_recorded_and_shown_at_the_end(place):
    """It finds the sidecar by its environment, even before that listens."""
    done = run(place / "data", sys.executable, "-c", EMIT + FINISH)

    info = read_json(place / "data/runs/r/run.json")
    assert done.returncode == 0
    assert (info["state"], info["status"]) == ("ended", "finished")
    assert "2 events, finished" in done.stderr


ENDINGS = {
    "returns": ("", 0, "finished"),
    "raises": ("raise RuntimeError('boom')", 1, "failed"),
    "sys.exit": ("import sys; sys.exit(3)", 3, "failed"),
    "os._exit": ("os._exit(4)", 4, "failed"),
    "SIGTERM": ("os.kill(os.getpid(), 15)", 143, "failed"),
    "SIGKILL": ("os.kill(os.getpid(), 9)", 137, "failed"),
}
"""What a script does at its end, the exit code of that, and the status of its run."""


def ending_of(data_dir: Path) -> tuple[str, str, int | None]:
    info = read_json(data_dir / "runs/r/run.json") or {}
    return info.get("state"), info.get("status"), info.get("exit_code")


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("is_shared", [False, True], ids=["own sidecar", "one at work"])
def test_a_run_that_does_not_say_how_it_ends_ends_as_its_command_does(place, how, is_shared):
    """`run` has waited for the command, and knows. Also where another one is the sidecar."""
    data, (script, code, status) = place / "data", ENDINGS[how]
    with SidecarProcess(data) if is_shared else contextlib.nullcontext():
        done = run(data, sys.executable, "-c", f"{EMIT}    time.sleep(0.2)\n    {script}")

        assert done.returncode == code
        assert ending_of(data) == ("ended", status, code), done.stderr
    assert "(n): " in done.stderr and "inspect" in done.stderr


def test_what_a_run_says_of_itself_is_not_overruled(place):
    """A script may end with 0 after it told of its failure."""
    done = run(place / "data", sys.executable, "-c", EMIT + FINISH.replace("finished", "preempted"))

    assert done.returncode == 0 and ending_of(place / "data") == ("ended", "preempted", None)


def test_a_run_of_another_command_does_not_end_with_this_one(place):
    """A trainer that uses the same sidecar goes on."""
    data = place / "data"
    with SidecarProcess(data) as sidecar, Emitter(
        sidecar.endpoint, run_id="other", source="rank0", spool_dir=None
    ) as other:  # fmt: skip
        other.emit(RunStarted(project="p", name="other"))

        run(data, sys.executable, "-c", EMIT)

        assert ending_of(data) == ("ended", "finished", 0)
        assert (read_json(data / "runs/other/run.json") or {})["state"] == "running"


def test_a_run_that_a_former_command_left_is_not_this_ones(place):
    """Killed with its sidecar, nobody knows how it ended."""
    data = place / "data"
    with SidecarProcess(data) as sidecar:
        with Emitter(sidecar.endpoint, run_id="old", source="rank0") as emitter:
            emitter.emit(RunStarted(project="p", name="old", launch_id="gone"))
            emitter.close(10)
        sidecar.kill()

    run(data, sys.executable, "-c", EMIT)

    assert ending_of(data) == ("ended", "finished", 0)
    assert (read_json(data / "runs/old/run.json") or {})["status"] == "lost"


def test_a_frozen_sidecar_learns_of_the_end_when_it_goes_on(place):
    """The word waits for it, and so do the events. Row 4."""
    data = place / "data"
    with SidecarProcess(data) as sidecar:
        sidecar.service.suspend()
        done = run(data, sys.executable, "-c", f"{EMIT}\nimport sys; sys.exit(3)")
        sidecar.service.resume()

        wait_until(lambda: ending_of(data) == ("ended", "failed", 3), 30)

    assert done.returncode == 3 and "waits in" in done.stderr


def test_a_sidecar_that_ended_while_its_command_ran_is_replaced_at_the_end(place):
    """Whoever stopped it did not mean this run to stay unrecorded."""
    data = place / "data"
    with SidecarProcess(data) as sidecar:
        script = f"touch {place}/ready; until [ -e {place}/go ]; do sleep 0.02; done; "
        process = launched(data, "sh", "-c", script + f"exec {sys.executable} -c '{EMIT}'")
        wait_until(lambda: (place / "ready").exists())
        sidecar.terminate()
        (place / "go").touch()

        process.communicate(timeout=60)

    assert ending_of(data) == ("ended", "finished", 0)


def test_a_sidecar_that_can_not_start_keeps_the_command_from_nothing(place):
    """The reason is said; the command runs. Row 13."""
    (place / "file").touch()

    done = run(place / "file/below", "sh", "-c", "sleep 1; exit 3")

    assert done.returncode == 3
    assert "can't be written" in done.stderr and "goes on without it" in done.stderr


def listening(data_dir: Path, other_than: str = "") -> str:
    """The pid of the sidecar that listens there; nothing where none does yet."""
    pid, address = holder_of(data_dir)
    return pid if address and is_held(data_dir) and pid != other_than else ""


def waits_for(path: Path) -> list[str]:
    """A command that lasts until a file is there, and says where telemetry goes."""
    script = f'echo "$TELEMETRY_ENDPOINT"; until [ -e {path} ]; do sleep 0.02; done'
    return ["sh", "-c", script]


def test_a_sidecar_that_is_killed_is_started_again(place):
    """The command does not notice. Row 1."""
    data = place / "data"
    process = launched(data, *waits_for(place / "go"))
    first = wait_until(lambda: listening(data))

    os.kill(int(first), signal.SIGKILL)
    second = wait_until(lambda: listening(data, other_than=first))
    (place / "go").touch()
    process.communicate(timeout=60)

    assert second != first and process.returncode == 0


def test_a_sidecar_that_is_at_work_already_is_used_and_left_at_work(place):
    """It serves others, too."""
    data = place / "data"
    with SidecarProcess(data) as sidecar:
        done = run(data, "sh", "-c", 'echo "$TELEMETRY_ENDPOINT"')

        assert sidecar.process.poll() is None

    assert done.returncode == 0 and done.stdout.strip() == sidecar.endpoint
    assert "using the sidecar" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_for_the_command(place, number):
    """A scheduler's warning reaches the trainer; its answer is the exit code."""
    script = (
        "import signal, pathlib, sys, threading\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(9))\n"
        f"pathlib.Path({str(place / 'ready')!r}).touch()\n"
        "threading.Event().wait(60)\n"
    )
    process = launched(place / "data", sys.executable, "-c", script)
    wait_until(lambda: (place / "ready").exists())

    process.send_signal(number)
    process.communicate(timeout=60)

    assert process.returncode == 9
    wait_until(lambda: not is_held(place / "data"))


def test_a_sidecar_that_died_while_the_command_ended_is_there_once_more_to_drain(place):
    """What its sinks had not got yet goes on."""

    config = ServeConfig(
        data_dir=place / "data", sinks=(), sample_hz=0, http="off", page="off", host_run=False
    )
    sidecar = Sidecar(config)
    sidecar.keep()
    first = wait_until(lambda: listening(config.data_dir))
    os.kill(int(first), signal.SIGKILL)
    wait_until(lambda: not is_held(config.data_dir))

    sidecar.drain(20)

    assert holder_of(config.data_dir)[0] != first
    assert not is_held(config.data_dir)


def test_without_a_command_it_says_how(place):
    """One sentence, and 2."""
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "run"], capture_output=True, text=True
    )

    assert done.returncode == 2 and "run -- CMD" in done.stderr


@pytest.mark.parametrize(
    ("target", "why"),
    [("file", "there is a file in its place"), ("/proc/telemetry", "No such file"), ("/sys", "")],
)
def test_a_data_directory_that_can_not_be_had_is_told_once(place, target, why):
    """One line of why, one that the command goes on, and its code."""
    (place / "file").touch()

    done = run(place / target, "sh", "-c", "exit 3")

    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 2 and why in done.stderr


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:0", "tcp://[::1]:0"])
def test_an_address_with_an_open_port_is_told_whole(place, bind):
    """The command has it before its sidecar listens."""
    if "::1" in bind and not has_ipv6():
        pytest.skip("no IPv6 here")
    data = place / "data"
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "run", "--data-dir", str(data), *QUIET,
         f"--bind={bind}", "--", sys.executable, "-c", EMIT + FINISH],
        env=clean_env(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert ending_of(data) == ("ended", "finished", None), done.stderr


@pytest.mark.parametrize("ignored", ["SIGCHLD", "SIGINT", "SIGHUP"])
def test_signals_that_a_parent_ignores_change_nothing(place, ignored):
    """A process supervisor may leave them so: the exit code is known all the same."""
    done = subprocess.run(
        [sys.executable, "-c", "import os, signal, sys\n"
         f"signal.signal(signal.{ignored}, signal.SIG_IGN)\n"
         "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
         "-m", "telemetry", "run", "--data-dir", str(place / "d"), *QUIET,
         "--", "sh", "-c", "exit 5"],
        env=clean_env(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert done.returncode == 5, done.stderr


def test_standard_input_is_the_commands(place):
    """A pipe into `run` is a pipe into its command."""
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "run", "--data-dir", str(place / "d"), *QUIET,
         "--", "cat"],
        env=clean_env(), input="through", capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "through")


def test_a_command_that_leaves_a_process_behind_is_over_with_its_own_end(place):
    """A daemon that goes on does not keep `run`, or its sidecar, from ending."""
    script = f"(sleep 30 & echo $! > {place}/pid); exit 4"

    done = run(place / "data", "sh", "-c", script + " >/dev/null 2>&1")

    os.kill(int((place / "pid").read_text()), signal.SIGKILL)
    assert done.returncode == 4 and not is_held(place / "data")


def test_a_second_signal_ends_the_drain(place):
    """A sidecar that stands still is not waited for when somebody says so."""
    data = place / "data"
    process = launched(data, "sh", "-c", f"until [ -e {place}/go ]; do sleep 0.02; done; exit 6")
    pid = int(wait_until(lambda: listening(data)))
    os.kill(pid, signal.SIGSTOP)
    (place / "go").touch()
    wait_until(lambda: list((data / "exits").glob("*.json")))

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=9)

    assert process.returncode == 6
    wait_until(lambda: not is_held(data))
