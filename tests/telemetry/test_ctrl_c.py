"""Ctrl-C: what a person at a terminal gets for it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from telemetry.datadir import holder_of, is_held
from telemetry.json_files import read_json
from tests.telemetry.sidecar_process import QUIET, clean_env
from tests.telemetry.waiting import wait_until

CTRL_C = b"\x03"


def telemetry(*words: str) -> list[str]:
    return [sys.executable, "-m", "telemetry", *words]


class Terminal:
    """A terminal with one command in its foreground."""

    def __init__(self, command: list[str]) -> None:
        self._fd, theirs = pty.openpty()

        def take_terminal() -> None:
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=clean_env(),
            start_new_session=True, preexec_fn=take_terminal,
        )  # fmt: skip
        os.close(theirs)

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def wait(self) -> tuple[int, str]:
        """The exit code, and all that was shown."""
        shown = b""
        try:
            while chunk := os.read(self._fd, 1 << 16):
                shown += chunk
        except OSError:  # nobody has it open any more
            pass
        os.close(self._fd)
        return self.process.wait(30), shown.decode()


def test_a_healthy_sidecar_with_nothing_left_ends_with_0(place):
    """With every default: the host's own run among them, and no W&B key."""
    flags = ("--http=127.0.0.1:0", "--page=off")
    terminal = Terminal(telemetry("serve", "--data-dir", str(place / "d"), *flags))
    wait_until(lambda: holder_of(place / "d")[1])
    wait_until(lambda: (read_json(place / "d/runs" / host_run(place)) or {}).get("name"))

    terminal.press(CTRL_C)
    code, shown = terminal.wait()

    assert code == 0, shown
    assert "Traceback" not in shown and "not finished" not in shown
    assert "status on http://127.0.0.1:" in shown


def host_run(place: Path) -> str:
    runs = place / "d/runs"
    names = [path.name for path in runs.iterdir()] if runs.is_dir() else []
    return f"{names[0]}/run.json" if names else "none"


@pytest.mark.parametrize("delay_s", [0.1, 0.2, 0.4, 0.8])
def test_at_any_moment_of_the_start_it_shows_no_traceback(place, delay_s):
    """While modules load, while the directory is opened, in the loop."""
    process = subprocess.Popen(
        telemetry("serve", "--data-dir", str(place / "d"), *QUIET),
        env=clean_env(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(delay_s)

    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=30)

    # Before Python itself is up nobody could be quiet: its own modules are in that traceback.
    assert "/telemetry/" not in shown, shown
    assert "Traceback" in shown or process.returncode in (0, 130, -signal.SIGINT)


def test_the_command_gets_it_once_and_its_sidecar_records_the_end(place):
    """The terminal sends it to both; `run` sends no second one."""
    script = f"trap 'echo got >> {place}/got; exit 7' INT; touch {place}/ready; read x"
    terminal = Terminal(
        telemetry("run", "--data-dir", str(place / "d"), *QUIET, "--", "bash", "-c", script)
    )
    wait_until(lambda: (place / "ready").exists())

    terminal.press(CTRL_C)
    code, shown = terminal.wait()

    assert code == 7, shown
    assert (place / "got").read_text() == "got\n"
    assert "Traceback" not in shown and not is_held(place / "d")


def test_a_signal_for_the_launcher_alone_reaches_the_command(place):
    """`kill -INT` from elsewhere, while a terminal is the standard input."""
    script = f"trap 'exit 7' INT; touch {place}/ready; while :; do sleep 0.05; done"
    terminal = Terminal(
        telemetry("run", "--data-dir", str(place / "d"), *QUIET, "--", "bash", "-c", script)
    )
    wait_until(lambda: (place / "ready").exists())

    terminal.process.send_signal(signal.SIGINT)
    code, shown = terminal.wait()

    assert code == 7, shown
