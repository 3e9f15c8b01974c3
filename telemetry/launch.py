"""Launch: a command and its sidecar together, without Docker.

In: a command, and the sidecar's configuration.
Out: the command's own exit code, whatever became of the sidecar.
Never: keeps the command from starting, running or ending.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType
from typing import Final

from shared.programs import module_command, module_environ
from telemetry.config import ServeConfig, as_flags
from telemetry.datadir import holder_of, is_held
from telemetry.errors import EXIT_RUNNING, EXIT_USAGE

log = logging.getLogger("telemetry.launch")

POLL_S: Final = 0.2
RESTART_MAX_S: Final = 30.0
FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Sidecar:
    """The sidecar as a child process; it ends with the pipe to its standard input."""

    def __init__(self, config: ServeConfig) -> None:
        config = replace(config, exit_with_stdin=True)
        self._command = module_command("telemetry", "serve", *as_flags(config))
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._not_before_s = 0.0
        self._is_hopeless = False

    def keep(self) -> None:
        """Start it, again if it died."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._note_death(code)
        if (
            self._process is None
            and not self._is_hopeless
            and time.monotonic() >= self._not_before_s
        ):
            try:
                # A session of its own: Ctrl-C is for the command, not for what records it.
                self._process = subprocess.Popen(
                    self._command,
                    env=module_environ(os.environ),
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as exc:
                log.error("sidecar can't be started: %s", exc)
                self._is_hopeless = True

    def drain(self, timeout_s: float) -> None:
        """Let it finish, at most so long."""
        # One that died while the command ended has to be there once more, to finish its work.
        self.keep()
        if self._process is None:
            self._not_before_s = 0.0
            self.keep()
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.error("sidecar did not drain in %.0f s, ending it", timeout_s)
            self._process.kill()
            self._process.wait()
        self._say_if_hopeless(self._process.returncode)

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
        """Whether the same start would end the same way."""
        if code in (EXIT_USAGE, EXIT_RUNNING):
            log.error("sidecar ended with exit code %d; the command goes on without it", code)
            self._is_hopeless = True
        return self._is_hopeless


def launch(command: Sequence[str], config: ServeConfig) -> int:
    """Run the command with a sidecar, and return the command's exit code (128 + n on a signal)."""
    sidecar: Sidecar | None = None
    address = config.address
    if not config.spool_dir:
        config = replace(config, spool_dir=(str((config.data_dir / "spool").resolve()),))
    if is_held(config.data_dir):
        address = holder_of(config.data_dir)[1] or address
        log.info("using the sidecar that is at work on %s", address)
    else:
        sidecar = Sidecar(config)
        sidecar.keep()
    code = _run_command(command, config, address, sidecar)
    if sidecar is not None:
        sidecar.drain(config.drain_grace_s + 5)
    return code


def _run_command(
    command: Sequence[str], config: ServeConfig, address: str, sidecar: Sidecar | None
) -> int:
    environ = dict(os.environ, TELEMETRY_ENDPOINT=address, TELEMETRY_SPOOL_DIR=config.spool_dir[0])
    # A signal that comes between the start and the handlers waits for them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        child = subprocess.Popen(
            command,
            env=environ,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
        )
        _forward_signals(child)
    except OSError as exc:
        print(f"telemetry: can't run {command[0]!r}: {exc.strerror}", file=sys.stderr)
        return 127 if isinstance(exc, FileNotFoundError) else 126
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    while True:
        try:
            code = child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if sidecar is not None:
                sidecar.keep()
            continue
        return 128 - code if code < 0 else code


def _forward_signals(child: subprocess.Popen[bytes]) -> None:
    is_terminal = os.isatty(0)

    def forward(number: int, frame: FrameType | None) -> None:
        # Ctrl-C at a terminal has reached the command already.
        if not (number == signal.SIGINT and is_terminal):
            child.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, forward)
