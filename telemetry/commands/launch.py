"""Launch: runs a command together with a sidecar, without Docker.

In: a command, and the sidecar's configuration.
Out: the command's own exit code, also where the sidecar failed.
Never: keeps the command from starting, running or ending.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from shared.clock import SystemClock
from shared.ids import new_session
from shared.launches import LAUNCH_VARIABLE
from shared.text import clean
from telemetry.commands.own_sidecar import FORWARDED, POLL_S, WATCHED, Sidecar, wait_for
from telemetry.commands.stderr_capture import Capture
from telemetry.config import ServeConfig
from telemetry.datadir import holder_of, is_held, was_used
from telemetry.exits import ExitReport, tell_exit
from telemetry.hardware.cgroup import CgroupProbe
from telemetry.run_dir import runs_of
from telemetry.summary import launched_runs, print_summary

log = logging.getLogger("telemetry.commands.launch")

CONCLUDE_S: Final = 12.0
"""Longest wait until a sidecar that we did not start has recorded the end of our runs."""


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

    wait_for(child, forward, keep_sidecar, lambda: float("inf"))
    code = child.returncode
    # Always asked for, so that all of it is on the terminal before our own last lines.
    last_lines = capture.last_lines(started.environ)
    return (128 - code if code < 0 else code), last_lines if code else ""


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
