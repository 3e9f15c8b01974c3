"""The sidecar of one run: a telemetry service as a child process of the trainer.

In: the address that it listens on, and a directory for its data.
Out: a running child process.
Never: imports the service, waits for it to be ready, or changes how the run ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from shared.programs import ROOT, module_command, module_environ
from shared.socket_path import SOCKET_NAME, fits, temporary_directories
from shared.terminal import Say

DRAIN_TIMEOUT_S = 25.0
"""Wait for the child's end. The service drains for 20 s at most; the rest is for its exit."""


class PrivateAddress:
    """A context with an ipc address that only this user can reach.

    The socket is in a temporary directory. If none can be made, as in a container that may
    only write its output, the directory is made in `beside`. parents are the directories for
    temporary files, in the order in which they are tried; by default those of the environment.
    """

    def __init__(self, beside: Path | None = None, parents: Iterable[Path] | None = None) -> None:
        self._beside, self._parents = beside, parents
        self._directory: Path | None = None

    def __enter__(self) -> str | None:
        """Return the address; None where no directory can hold a socket."""
        parents = temporary_directories(os.environ) if self._parents is None else self._parents
        for parent in [*parents, *filter(None, [self._beside])]:
            if not fits(parent / "trainer-xxxxxxxx" / SOCKET_NAME):
                continue
            try:
                self._directory = Path(tempfile.mkdtemp(prefix="trainer-", dir=parent))
            except OSError:
                continue
            return f"ipc://{self._directory / SOCKET_NAME}"
        return None

    def __exit__(self, *error: object) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


class Sidecar:
    """A running child process, which drains and ends when its standard input closes.

    That input is a pipe whose other end this process holds, so the child also ends when the
    trainer is killed. Not thread-safe.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._was_told_dead = False
        # A forked loader worker inherits the pipe, and would hold it open after our death.
        if child.stdin is not None:
            pipe = weakref.ref(child.stdin)
            os.register_at_fork(after_in_child=lambda: _close_raw(pipe()))

    def check(self, say: Say) -> None:
        """Tell the user once if the child has ended too early. Does not wait."""
        if not self._was_told_dead and self._child.poll() is not None:
            self._was_told_dead = True
            say(
                f"The sidecar has ended (exit code {self._child.returncode}): "
                "from here on nothing is recorded but the spool."
            )

    def close(self, say: Say, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Let the child drain and end; kill it after timeout_s. May be called twice."""
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


def start_sidecar(command: Sequence[str], say: Say) -> Sidecar | None:
    """Start the service by a command. If it can't start, say so and return None."""
    try:
        # A session of its own: Ctrl-C on the terminal goes to the trainer alone, which then
        # closes the sidecar in order.
        child = subprocess.Popen(
            command,
            env=module_environ(os.environ),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as exc:
        say(f"The sidecar cannot start ({exc}): nothing is recorded but the spool.")
        return None
    return Sidecar(child)


def serve_command(address: str, data_dir: Path, spool_dir: Path) -> list[str]:
    """Return the command of a service for one run.

    The service has no HTTP, no page and no run for the host's hardware, and ends with its standard
    input. It also takes in events from the spool: a short run can be over before the
    service is up.
    """
    words = ["serve", "--bind", address]
    words += ["--data-dir", str(data_dir), "--spool-dir", str(spool_dir)]
    words += ["--sinks", "tensorboard,wandb"]
    return module_command(
        "telemetry", *words, "--http", "off", "--page", "off", "--no-host-run", "--exit-with-stdin"
    )


def is_installed(root: Path = ROOT) -> bool:
    """True if our own package `telemetry` is in root, and not another one of that name."""
    return (root / "telemetry" / "__main__.py").is_file()


def _close_raw(pipe: IO[bytes] | None) -> None:
    """Close the descriptor of a file object without flushing the object."""
    if pipe is not None and not pipe.closed:
        with contextlib.suppress(OSError):
            os.close(pipe.fileno())
