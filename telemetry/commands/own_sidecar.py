"""Own sidecar: a telemetry service as a child process of a command of ours.

In: the sidecar's configuration.
Out: the process, started again when it dies, and drained at the end.
Never: outlives its parent: it ends when its standard input closes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from shared.programs import module_command, module_environ
from telemetry.config import ServeConfig, as_flags, secret_environ
from telemetry.errors import EXIT_RUNNING, EXIT_USAGE

log = logging.getLogger("telemetry.commands.launch")

POLL_S: Final = 0.2
RESTART_MAX_S: Final = 30.0
FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
WATCHED: Final = (*FORWARDED, signal.SIGCHLD)
HURRY_S: Final = 2.0
"""Time that the sidecar has left to end after a signal that comes while it drains."""


class Sidecar:
    """The sidecar as a child process, which ends when its standard input closes."""

    def __init__(self, config: ServeConfig, log: Path | None = None) -> None:
        """Prepare the sidecar. log: a file for what it says, in place of our standard error."""
        config = replace(config, exit_with_stdin=True)
        self._log = log
        self._command = module_command("telemetry", "serve", *as_flags(config))
        self._environ = module_environ(os.environ) | secret_environ(config)
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._not_before_s = 0.0
        self._is_hopeless = False

    def keep(self) -> None:
        """Start the sidecar if it is not running, unless it must wait or can't work."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._note_death(code)
        if (
            self._process is None
            and not self._is_hopeless
            and time.monotonic() >= self._not_before_s
        ):
            try:
                self._process = self._started()
            except OSError as exc:
                log.error("sidecar can't be started: %s", exc)
                self._is_hopeless = True

    def _started(self) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as files:
            output = files.enter_context(self._log.open("ab")) if self._log else None
            # A session of its own: Ctrl-C is for the command, not for the sidecar.
            return subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_unblock_signals,
            )

    @property
    def is_hopeless(self) -> bool:
        """True if the sidecar ended in a way in which each further start would end as well."""
        return self._is_hopeless

    def drain(self, timeout_s: float, exit_code: int | None = None) -> None:
        """Tell the sidecar the command's exit code, and wait until it has drained.

        After timeout_s it is killed; a signal meanwhile shortens the time to HURRY_S.
        """
        # 1. A sidecar that died while the command ended is started once more: it has to drain.
        self.keep()
        if self._process is None:
            self._not_before_s = 0.0
            self.keep()
        if self._process is None:
            return
        # 2. Tell it the exit code; the end of its standard input makes it drain.
        _close_with_word(self._process, exit_code)
        # 3. Wait, but not for ever: what is journaled or spooled is not lost with it.
        if not self._wait(timeout_s):
            log.error("sidecar did not drain in time; its work is kept for the next one")
            self._process.kill()
            self._process.wait()
        self._say_if_hopeless(self._process.returncode)

    def _wait(self, timeout_s: float) -> bool:
        """Wait for the sidecar's end, HURRY_S after a signal; return True if it has ended."""
        process = self._process
        assert process is not None
        deadline_s = time.monotonic() + timeout_s

        def hurry(info: signal.struct_siginfo) -> None:
            nonlocal deadline_s
            if process.poll() is None:
                process.terminate()
                deadline_s = min(deadline_s, time.monotonic() + HURRY_S)

        wait_for(process, hurry, lambda: None, lambda: deadline_s)
        return process.returncode is not None

    def _note_death(self, code: int) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        self._process = None
        self._failures += 1
        if self._say_if_hopeless(code):
            return
        delay_s = min(0.25 * 2**self._failures, RESTART_MAX_S) * random.uniform(0.5, 1.0)
        self._not_before_s = time.monotonic() + delay_s
        log.warning("sidecar died (exit code %d), retry_s=%.1f", code, delay_s)

    def _say_if_hopeless(self, code: int) -> bool:
        """Return True, and log it, if another start would end in the same way."""
        if code in (EXIT_USAGE, EXIT_RUNNING):
            log.error("sidecar ended with exit code %d; the command goes on without it", code)
            self._is_hopeless = True
        return self._is_hopeless


def wait_for(
    process: subprocess.Popen[bytes],
    on_signal: Callable[[signal.struct_siginfo], None],
    on_poll: Callable[[], None],
    deadline_s: Callable[[], float],
) -> None:
    """Wait until a child has ended or the time is over. The watched signals must be blocked."""
    while process.poll() is None and time.monotonic() < deadline_s():
        # A child's end is a signal as well, so nothing waits longer than it has to.
        info = signal.sigtimedwait(WATCHED, POLL_S)
        if info is not None and info.si_signo != signal.SIGCHLD:
            on_signal(info)
        on_poll()


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _close_with_word(process: subprocess.Popen[bytes], exit_code: int | None) -> None:
    assert process.stdin is not None
    try:
        if exit_code is not None:
            process.stdin.write(json.dumps({"exit_code": exit_code}).encode() + b"\n")
        process.stdin.close()
    except BrokenPipeError:
        log.warning("sidecar ended before it was told how the command did")
