"""The private sidecar: a child that ends with its pipe, and whose troubles are only told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.socket_path import fits
from trainer.__main__ import main
from trainer.reporting import telemetry_link
from trainer.reporting.sidecar import PrivateAddress, is_installed, serve_command, start_sidecar

READS_TO_THE_END = "import sys; sys.stdin.read(); open(sys.argv[1], 'w').write('drained')"
IGNORES_THE_END = "import time; time.sleep(600)"
DIES = "raise SystemExit(4)"


def service(program: str, result: Path) -> list[str]:
    """The command of a program that stands in for the service."""
    return [sys.executable, "-c", program, str(result)]


def test_the_child_drains_when_its_pipe_closes(tmp_path):
    """close() waits for the child, which then ends by itself."""
    command = service(READS_TO_THE_END, tmp_path / "result")
    said: list[str] = []

    child = start_sidecar(command, said.append)
    assert child is not None
    child.close(said.append)
    child.close(said.append)

    assert (tmp_path / "result").read_text() == "drained"
    assert said == ["Finishing the records …"]


def test_the_child_ends_when_the_trainer_is_killed(tmp_path):
    """Even by kill -9, and with a forked worker that outlives it."""
    os.mkfifo(tmp_path / "result")
    program = (
        "import os, time\n"
        "from trainer.reporting.sidecar import start_sidecar\n"
        f"child = start_sidecar({service(READS_TO_THE_END, tmp_path / 'result')!r}, print)\n"
        "worker = os.fork()\n"
        "if worker == 0: time.sleep(600)\n"
        "print(worker, flush=True); time.sleep(600)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    worker = int(trainer.stdout.readline())

    trainer.kill()
    trainer.wait()

    try:
        # Opening the pipe to read waits for the child to open it to write.
        assert (tmp_path / "result").read_text() == "drained"
    finally:
        os.kill(worker, signal.SIGKILL)
        trainer.stdout.close()


def test_a_child_that_does_not_end_is_killed_in_time(tmp_path):
    """The end of a run is bounded."""
    command = service(IGNORES_THE_END, tmp_path / "result")
    said: list[str] = []

    child = start_sidecar(command, said.append)
    assert child is not None
    child.close(said.append, timeout_s=0.01)

    assert "was killed" in said[-1]


def test_a_run_with_a_sidecar_that_dies_ends_as_ever(monkeypatch, tmp_path, small_run, capsys):
    """Exit code 0, and one line that says since when nothing is recorded."""
    command = service(DIES, tmp_path / "result")
    monkeypatch.setattr(telemetry_link, "serve_command", lambda *args: command)
    run = [argument for argument in small_run if argument != "--no_sidecar"]
    monkeypatch.setattr(telemetry_link, "CLOSE_TIMEOUT_S", 0.1)

    code = main(run)

    error = capsys.readouterr().err
    assert code == 0
    assert error.count("The sidecar has ended (exit code 4)") == 1
    assert "wait in" in error


def test_a_child_that_cannot_start_is_one_line():
    """A missing interpreter, or no process to be had."""
    said: list[str] = []

    child = start_sidecar(["/nowhere/python"], said.append)

    assert child is None
    assert "nothing is recorded but the spool" in said[0]


@pytest.mark.parametrize("content", [None, "print('a dashboard of my own')"])
def test_a_folder_of_the_users_own_is_no_installed_sidecar(monkeypatch, tmp_path, content):
    """Only what was installed beside the trainer is ours, whatever lies in the search path."""
    (tmp_path / "telemetry").mkdir()
    if content is not None:
        (tmp_path / "telemetry" / "__init__.py").write_text(content)
        (tmp_path / "telemetry" / "__main__.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))

    assert is_installed() and not is_installed(tmp_path / "elsewhere")


def address_in(beside: Path, *temporary: Path) -> str | None:
    """Where a socket is put; its directory is private while it is there, then gone."""
    with PrivateAddress(beside, temporary) as address:
        if address is None:
            return None
        path = Path(address.removeprefix("ipc://"))
        assert path.parent.stat().st_mode & 0o077 == 0 and fits(path)
    assert not path.parent.exists()
    return str(path.parent.parent)


def test_the_private_address_is_short_and_goes_away(tmp_path):
    """A socket's path has at most 107 bytes, however long TMPDIR is."""
    long = tmp_path / ("x" * 100)
    long.mkdir()

    chosen = address_in(tmp_path, long, Path("/tmp"))

    assert chosen == "/tmp"


def test_without_a_temporary_directory_the_socket_is_beside_the_output(tmp_path):
    """A container may be read-only but for what the run writes."""
    assert address_in(Path("/tmp"), tmp_path / "gone", Path("/proc")) == "/tmp"


def test_without_any_directory_for_a_socket_there_is_no_address(tmp_path):
    """Training goes on without a sidecar."""
    assert address_in(tmp_path / ("x" * 100), Path("/proc")) is None


def test_the_command_asks_for_what_a_single_run_needs():
    """TensorBoard and wandb, no HTTP, no run beside the user's, and an end with the pipe."""
    command = serve_command("ipc:///x", Path("/data"), Path("/spool"))

    # -P: a folder `telemetry` in the working directory is not ours.
    assert command[1:7] == ["-P", "-X", "utf8", "-m", "telemetry", "serve"]
    assert {"--exit-with-stdin", "--no-host-run", "tensorboard,wandb", "ipc:///x", "/data"} <= set(
        command
    )
