"""Launch: runs a command together with a sidecar, without Docker.

In: a command, and the sidecar's configuration.
Out: the command's own exit code, also where the sidecar failed.
Never: keeps the command from starting, running or ending.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from shared.clock import SystemClock
from shared.ids import new_session
from shared.launches import LAUNCH_VARIABLE
from shared.programs import module_command, module_environ
from shared.text import clean
from telemetry.commands.stderr_capture import Capture
from telemetry.config import ServeConfig, as_flags, secret_environ
from telemetry.datadir import holder_of, is_held, was_used
from telemetry.errors import EXIT_RUNNING, EXIT_USAGE
from telemetry.exits import ExitReport, tell_exit
from telemetry.hardware.cgroup import CgroupProbe
from telemetry.run_dir import runs_of
from telemetry.summary import launched_runs, print_summary

log = logging.getLogger("telemetry.commands.launch")

POLL_S: Final = 0.2
RESTART_MAX_S: Final = 30.0
FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
WATCHED: Final = (*FORWARDED, signal.SIGCHLD)
HURRY_S: Final = 2.0
"""Time that the sidecar has left to end after a signal that comes while it drains."""
CONCLUDE_S: Final = 12.0
"""Longest wait until a sidecar that we did not start has recorded the end of our runs."""


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

        _wait_for(process, hurry, lambda: None, lambda: deadline_s)
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


@dataclass(frozen=True)
class Launch:
    """A command's launch: its id, and the sidecar that records it."""

    launch_id: str
    config: ServeConfig
    address: str
    sidecar: Sidecar | None
    """None where another process's sidecar already serves the data directory."""

    @property
    def environ(self) -> dict[str, str]:
        """Environment of the command: an emitter in it finds the sidecar by itself."""
        return {
            **os.environ,
            "TELEMETRY_ENDPOINT": self.address,
            "TELEMETRY_SPOOL_DIR": self.config.spool_dir[0],
            LAUNCH_VARIABLE: self.launch_id,
        }


def launch(command: Sequence[str], config: ServeConfig) -> int:
    """Run the command with a sidecar, and return the command's exit code (128 + n on a signal)."""
    # A parent may have set SIGCHLD to be ignored: exit codes of children would be lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    try:
        # 1. The sidecar, or the one that serves the data directory already.
        started = _start(config)
        # 2. The command; meanwhile a sidecar that dies is restarted.
        kills_before = _oom_kills()
        code, stderr = _run_command(command, started, before)
        # 3. The exit code into a file, before anything waits: it reaches any later sidecar.
        _tell_exit(started, ExitReport(code, _since(kills_before), stderr))
        # 4. The end of the recording, bounded in time.
        _conclude(started, code)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return code


def _oom_kills() -> int | None:
    """Return how many processes of this container the kernel has killed for want of memory."""
    return CgroupProbe(SystemClock()).oom_kills()


def _since(before: int | None) -> int | None:
    now = _oom_kills()
    return None if before is None or now is None else max(0, now - before)


def _start(config: ServeConfig) -> Launch:
    if not config.spool_dir:
        config = replace(config, spool_dir=(str(config.data_dir.absolute() / "spool"),))
    if is_held(config.data_dir):
        address = holder_of(config.data_dir)[1] or config.address
        log.info("using the sidecar that is at work on %s", address)
        return Launch(new_session(), config, address, None)
    config = replace(config, bind=_with_port(config.address))
    sidecar = Sidecar(config)
    sidecar.keep()
    return Launch(new_session(), config, config.address, sidecar)


def _with_port(address: str) -> str:
    """Return the address with a free port in place of port 0, since the command is told now."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or port != "0":
        return address
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host.strip("[]"), 0))
            return f"tcp://{host}:{probe.getsockname()[1]}"
    except OSError as exc:
        log.warning("%s has no free port (%s)", address, exc.strerror or exc)
        return address


def _run_command(command: Sequence[str], started: Launch, mask: Iterable[int]) -> tuple[int, str]:
    """Run the command to its end; return its exit code, and if it failed its last lines."""
    capture = Capture()
    try:
        child = subprocess.Popen(
            command,
            env=started.environ,
            stderr=capture.fd,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
        )
    except OSError as exc:
        print(f"telemetry: can't run {command[0]!r}: {exc.strerror}", file=sys.stderr)
        return 127 if isinstance(exc, FileNotFoundError) else 126, ""
    finally:
        capture.let_go()

    def forward(info: signal.struct_siginfo) -> None:
        # Only if sent by a process: a terminal sends it to the command too, which is in our
        # process group.
        if info.si_code <= 0:
            child.send_signal(info.si_signo)

    def keep_sidecar() -> None:
        if started.sidecar is not None:
            started.sidecar.keep()

    _wait_for(child, forward, keep_sidecar, lambda: float("inf"))
    code = child.returncode
    # Always asked for, so that all of it is on the terminal before our own last lines.
    last_lines = capture.last_lines(started.environ)
    return (128 - code if code < 0 else code), last_lines if code else ""


def _wait_for(
    process: subprocess.Popen[bytes],
    on_signal: Callable[[signal.struct_siginfo], None],
    on_turn: Callable[[], None],
    deadline_s: Callable[[], float],
) -> None:
    """Wait until a child has ended or the time is over. The watched signals must be blocked."""
    while process.poll() is None and time.monotonic() < deadline_s():
        # A child's end is a signal as well, so nothing waits longer than it has to.
        info = signal.sigtimedwait(WATCHED, POLL_S)
        if info is not None and info.si_signo != signal.SIGCHLD:
            on_signal(info)
        on_turn()


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


def _tell_exit(started: Launch, report: ExitReport) -> None:
    code, data_dir = report.exit_code, started.config.data_dir
    try:
        tell_exit(data_dir, started.launch_id, report)
    except OSError as exc:
        # If no sidecar has ever used the directory, its own error was logged already.
        if was_used(data_dir):
            log.warning("exit code %d can't be recorded: %s", code, exc)


def _conclude(started: Launch, code: int) -> None:
    """Wait until the end of the runs is recorded, and print a summary.

    Our own sidecar drains and prints it. Of another one we wait for the runs of this launch.
    """
    config, sidecar = started.config, started.sidecar
    if sidecar is None and not is_held(config.data_dir):
        # The other sidecar has ended meanwhile: start one to take in the spools.
        sidecar = Sidecar(config)
    if sidecar is not None:
        sidecar.drain(config.drain_grace_s + 5, code)
        return
    runs_dir, deadline_s = runs_of(config.data_dir), time.monotonic() + CONCLUDE_S
    while True:
        runs = launched_runs(runs_dir, started.launch_id)
        is_over = all(run.is_ended for run in runs.values())
        if is_over and (runs or not _is_anything_left(config)):
            break
        if time.monotonic() >= deadline_s or signal.sigtimedwait(FORWARDED, POLL_S):
            break
    print_summary(runs_dir, sorted(runs), ())
    if not is_over or (not runs and _is_anything_left(config)):
        pid = holder_of(config.data_dir)[0]
        log.warning(
            "the sidecar with pid %s has not recorded all of it yet; the rest waits in %s",
            clean(pid), config.spool_dir[0],
        )  # fmt: skip


def _is_anything_left(config: ServeConfig) -> bool:
    return any(Path(config.spool_dir[0]).glob("*.spool"))
