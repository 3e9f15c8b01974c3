"""Guard: the small parent process of the service, which restarts it after a crash.

In: the command of the service.
Out: the service's own exit code.
Never: imports the libraries of the service, which may end a process by themselves. Neither
of the two outlives the other.

The guard's pid is the one that a user sees: it forwards signals to the service, which also
inherits its standard input. When the guard is gone, for any reason, the kernel kills the
service; where it can't, the service sees the end of the pipe between them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

from shared.programs import module_command, module_environ
from telemetry.errors import EXIT_FAULT
from telemetry.logs import configure_logs

log = logging.getLogger("telemetry.guard")

FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
FIRST_RETRY_S: Final = 0.5
RETRY_MAX_S: Final = 30.0
HEALTHY_S: Final = 60.0
"""A service that lived for so long is restarted after the shortest delay."""

PR_SET_PDEATHSIG: Final = 1


class Guard:
    """Runs the service, and restarts it until it ends by itself. Main thread only."""

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        self._command = list(command)
        self._env = env
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopping = threading.Event()
        self._forwarded: set[int] = set()

    def run(self) -> int:
        """Keep the service running; return its exit code, 128 + n after a forwarded signal n."""
        # They stay blocked while there is no child to forward them to: none is lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        for number in FORWARDED:
            signal.signal(number, self._forward)
        retry_s = FIRST_RETRY_S
        # The service reads from one end of a pipe; the other is closed when this process ends.
        lifeline, _ = os.pipe()
        while True:
            began_s = time.monotonic()
            code = self._run_once(lifeline)
            # 1. It ended by itself: its exit code is ours.
            if code >= 0:
                return code
            # 2. It was ended by a signal that was sent to us: that was wanted.
            if -code in self._forwarded:
                return 128 - code
            # 3. It crashed while draining: a restart would begin to serve again.
            if self._is_stopping.is_set():
                log.error("the service was ended by %s while it drained", _name(-code))
                return EXIT_FAULT
            # 4. It crashed: start it again, after a delay that doubles while it keeps crashing.
            retry_s = FIRST_RETRY_S if time.monotonic() - began_s > HEALTHY_S else retry_s
            log.error("the service was ended by %s, retry_s=%.1f", _name(-code), retry_s)
            if self._is_stopping.wait(retry_s):
                return EXIT_FAULT
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    def _run_once(self, lifeline: int) -> int:
        command = [*self._command, f"--lifeline={lifeline}"]
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            # The child begins with them blocked, and takes them when it has handlers.
            self._child = subprocess.Popen(command, env=self._env, pass_fds=(lifeline,))
        finally:
            take_signals()
        return self._child.wait()

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._forwarded.add(number)
        if number in (signal.SIGTERM, signal.SIGINT):
            self._is_stopping.set()
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)


def become_guard(flags: Sequence[str]) -> NoReturn:
    """Replace this program by the guard of `serve` with these flags.

    A new program, because the libraries of this one would take memory all the time.
    """
    command = module_command("telemetry.guard", *flags)
    # Until the guard has handlers for them: Python's own would end it with a traceback.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    os.execve(command[0], command, module_environ(os.environ))


def follow_guard(lifeline: int) -> None:
    """End this process when its guard ends. The service calls it before all else."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        # Nothing is ever written: this returns when the guard's end of the pipe is closed.
        with contextlib.suppress(OSError):
            os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def take_signals() -> None:
    """Take the signals that were held back, guard or service: its handlers are there now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main() -> int:
    """Guard `python -m telemetry serve` with the arguments of this program."""
    configure_logs()
    command = module_command("telemetry", "serve", *sys.argv[1:])
    return Guard(command, dict(os.environ)).run()


if __name__ == "__main__":
    sys.exit(main())
