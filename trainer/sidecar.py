"""Sidecar: a telemetry service of this run's own, as a child process.

In: a directory for its data.
Out: the address it will listen on.
Never: imports the service, waits for it to be ready, or changes how the run ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

SOCKET_PATH_MAX_BYTES = 107
DRAIN_TIMEOUT_S = 25.0
"""The service drains for 20 s at most; the rest is for its own ending."""

Say = Callable[[str], None]


class PrivateAddress:
    """A context with an ipc address that only this user can reach."""

    def __enter__(self) -> str:
        self._directory = Path(tempfile.mkdtemp(prefix="trainer-"))
        if len(os.fsencode(self._socket())) > SOCKET_PATH_MAX_BYTES:
            self._directory.rmdir()
            self._directory = Path(tempfile.mkdtemp(prefix="trainer-", dir="/tmp"))
        return f"ipc://{self._socket()}"

    def _socket(self) -> Path:
        return self._directory / "telemetry.sock"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


class Sidecar:
    """A running child. It drains and ends when its standard input closes.

    That input is a pipe whose other end this process holds, so the child ends by itself
    however the trainer dies.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._was_told_dead = False
        # A forked loader worker inherits the pipe, and would hold it open past our death.
        if child.stdin is not None:
            pipe = weakref.ref(child.stdin)
            os.register_at_fork(after_in_child=lambda: _close_raw(pipe()))

    def check(self, say: Say) -> None:
        """Say once if the child has ended too early. Does not wait."""
        if not self._was_told_dead and self._child.poll() is not None:
            self._was_told_dead = True
            say(
                f"The sidecar has ended (exit code {self._child.returncode}): "
                "from here on nothing is recorded but the spool."
            )

    def close(self, say: Say, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Let the child drain and end; kill it when it takes longer. May be called twice."""
        if self._child.stdin is None or self._child.stdin.closed:
            return
        self.check(say)
        self._child.stdin.close()
        if self._was_told_dead:
            return
        say("Finishing the records …")
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            say(f"The sidecar did not end within {timeout_s:.0f} s and was killed.")


def start_sidecar(address: str, data_dir: Path, spool_dir: Path, say: Say) -> Sidecar | None:
    """Start the service if it is installed; None, with a line that says so, if not."""
    if not is_installed():
        say("The sidecar is not installed: nothing is recorded but the spool.")
        return None
    try:
        # A session of its own: the terminal's Ctrl-C is for the trainer, which ends it in order.
        child = subprocess.Popen(
            serve_command(address, data_dir, spool_dir),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as exc:
        say(f"The sidecar cannot start ({exc}): nothing is recorded but the spool.")
        return None
    return Sidecar(child)


def serve_command(address: str, data_dir: Path, spool_dir: Path) -> list[str]:
    """The service for one run and no run of the host's: no HTTP, an end with its input.

    It takes in what is left in the spool, too: a run can be over before it is up.
    """
    command = [sys.executable, "-m", "telemetry", "serve", "--bind", address]
    command += ["--data-dir", str(data_dir), "--spool-dir", str(spool_dir)]
    command += ["--sinks", "tensorboard,wandb"]
    return [*command, "--http", "off", "--no-host-run", "--exit-with-stdin"]


def is_installed() -> bool:
    """Whether there is a package `telemetry` to run; an empty directory is none."""
    spec = importlib.util.find_spec("telemetry")
    return spec is not None and spec.origin is not None


def _close_raw(pipe: IO[bytes] | None) -> None:
    """Close a file's descriptor under it, without a flush."""
    if pipe is not None and not pipe.closed:
        with contextlib.suppress(OSError):
            os.close(pipe.fileno())
