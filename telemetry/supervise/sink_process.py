"""One sink of one run as a child process: started, listened to, ended, and started again.

In: what the process reports through a pipe, and how it ends.
Out: its state, and when the next may start.
Never: waits for it, or leaves behind what it has started.

Not thread-safe: the supervisor's thread owns it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import signal
import subprocess
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from telemetry.errors import EXIT_FAULT, EXIT_OK, EXIT_RUNNING
from telemetry.run_dir import RunDir, StateFile
from telemetry.sinks.reporter import report_in
from telemetry.sinks.slot import Slot
from telemetry.sinks.surroundings import sink_environ
from telemetry.supervise.descendants import Descendants
from telemetry.watch.facts import SinkStatus

log = logging.getLogger("telemetry.supervise.supervisor")

DIE_S: Final = 1.0
"""Wait for a killed process; one that takes longer hangs in the kernel, and is reaped later."""

STEADY_S: Final = 60.0
"""A sink that worked for so long begins again with the shortest back-off."""

OF_ITS_OWN_DOING: Final = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS})
"""Signals by which a process ends itself. All others come from outside, SIGKILL also from
the kernel that has no memory left."""

RECOVERIES_MAX: Final = 3
"""Crashes after which a drain waits no more; skipping one bad row takes two crashes."""


class Pauses(NamedTuple):
    """The pauses of the supervisor, in seconds. Tests shorten them.

    poll_s: between two looks at all sinks. first_s, max_s: before a sink that has failed is
    started again, doubled with each failure.
    """

    poll_s: float = 0.25
    first_s: float = 1.0
    max_s: float = 300.0


PAUSES: Final = Pauses()


@dataclass
class SinkProcess:
    """One (run, sink): the process that is at work, or when the next may start."""

    run_dir: Path
    sink: str
    pauses: Pauses = PAUSES
    process: subprocess.Popen[bytes] | None = None
    report_fd: int = -1
    partial: bytes = b""
    state: str = "waiting"
    detail: str = ""
    row: int = 0
    skipped: int = 0
    left_out: int = 0
    started_ns: int = 0
    heard_ns: int = 0
    not_before_ns: int = 0
    failures: int = 0
    restarts: int = 0
    is_rejected: bool = False
    is_stopping: bool = False
    """True after the process was asked to stop, or killed."""
    is_said: bool = False
    """True if the process has logged its detail itself."""
    last_said: str = ""
    """State and detail that were last logged, without numbers."""
    descendants: Descendants = field(default_factory=Descendants)
    told: tuple[str, int, str] = ("", 0, "")
    """State, restarts and detail as the state file has them."""

    @property
    def is_at_work(self) -> bool:
        return self.process is not None

    @property
    def status(self) -> SinkStatus:
        return SinkStatus(
            self.run_dir.name, self.sink, self.state, self.row, self.restarts, self.detail,
            self.skipped, self.left_out,
        )  # fmt: skip

    @property
    def may_recover(self) -> bool:
        """True if it has crashed, and not so often yet that another start is pointless."""
        return self.state == "crashed" and self.failures <= RECOVERIES_MAX

    def start(self, command: list[str], now: int) -> None:
        """Start the process, with a pipe for its reports.

        Raises:
            OSError: it can't be started.
        """
        # A working directory without foreign files: a library might read a file there as its
        # configuration.
        directory = RunDir(self.run_dir).cursors.absolute()
        directory.mkdir(exist_ok=True)
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_fd, False)
        command = [*command, "--exit-with-stdin", "--report-fd", str(write_fd)]
        try:
            self.process = subprocess.Popen(
                command,
                env=sink_environ(os.environ),
                cwd=directory,
                stdin=subprocess.PIPE,
                pass_fds=[write_fd],
                start_new_session=True,
            )
        except OSError:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        self.report_fd, self.partial = read_fd, b""
        self.started_ns = self.heard_ns = now
        self.state, self.is_stopping, self.descendants = "starting", False, Descendants()
        self.is_said = False

    def ask_to_stop(self) -> None:
        """Ask the process to bring the run up to date and end.

        Not before its first report: until it handles the signal, that would kill it.
        """
        if self.process is not None and self.state != "starting" and not self.is_stopping:
            self.is_stopping = True
            self.process.terminate()

    def kill_if_hanging(self, timeout_ns: int, now: int) -> None:
        """Kill the process if it has not reported for timeout_ns."""
        silent_ns = now - self.heard_ns
        if self.is_at_work and self.state != "killed" and silent_ns > timeout_ns:
            self.kill(f"hung for {silent_ns / 1e9:.0f} s in state {self.state!r}", now)

    def listen(self, now: int) -> None:
        """Take in what the process reported, and record what it has started."""
        if self.report_fd < 0:
            return
        try:
            data = os.read(self.report_fd, 1 << 16)
        except BlockingIOError:
            return
        if data:
            self.heard_ns = now
            *lines, self.partial = (self.partial + data).split(b"\n")
            if lines:
                report = report_in(lines[-1])
                self.state, self.row, self.detail = report.state, report.row, report.detail
                self.skipped, self.left_out = report.skipped, report.left_out
                self.is_said = report.said
            if self.process is not None:
                self.descendants.record_now_and_then(self.process.pid, now)

    def tell(self) -> None:
        """Write the state file beside the cursor, for `inspect`, if it has changed."""
        told = self.state, self.restarts, self.detail
        if told == self.told:
            return
        self.told = told
        place, value = RunDir(self.run_dir), StateFile(*told)
        with contextlib.suppress(OSError):
            place.cursors.mkdir(exist_ok=True)
            place.state(self.sink).write_text(json.dumps(msgspec.structs.asdict(value)))

    def reap(self, now: int) -> None:
        """Notice that the process has ended, and set when the next may start."""
        if self.process is None or (code := self.process.poll()) is None:
            return
        # 1. Read its last report and close the pipes: the report may tell why it ended.
        self._let_go(now)
        # 2. A crash of its own may be due to the row it was at: note it, so that a row that
        #    kills the sink again and again is skipped.
        if -code in OF_ITS_OWN_DOING and self.state != "killed":
            self._hold_against_row(_how_it_ended(code))
        # 3. Kill the processes that it left behind: they would be in the way of the next one.
        if code != EXIT_OK:
            self.descendants.kill()
        # 4. Decide about the next start: at once, never, or after a back-off.
        if code == EXIT_OK:
            self.failures, self.not_before_ns = 0, now
            return
        if code == EXIT_FAULT:
            self.is_rejected, self.state = True, "rejected"
            return
        if now - self.started_ns > STEADY_S * 1e9:
            self.failures = 0
        self.failures += 1
        self.restarts += 1
        delay_s = self._delay_s()
        self.not_before_ns = now + int(delay_s * 1e9)
        if self.state not in ("unavailable", "killed", "crashed"):
            self.state, self.detail = "crashed", _how_it_ended(code)
        if code != EXIT_RUNNING:
            self._say_news(delay_s)

    def _say_news(self, delay_s: float) -> None:
        """Log how the process ended, unless the same was logged the last time."""
        # Compared without numbers, since rows and bytes differ each time.
        news = re.sub(r"\d+", "", f"{self.state} {self.detail}")
        if news != self.last_said and not self.is_said:
            log.warning(
                "sink=%s run=%s %s (%s), retry_s=%.0f",
                self.sink, self.run_dir.name, self.state, self.detail, delay_s,
            )  # fmt: skip
        self.last_said = news

    def kill(self, why: str, now: int) -> None:
        """End the process and all it has started: wandb-core has a session of its own."""
        assert self.process is not None
        log.warning("sink=%s run=%s killed: %s", self.sink, self.run_dir.name, why)
        self.descendants.record(self.process.pid)
        self.listen(now)
        self.state, self.detail, self.is_stopping, self.is_said = "killed", why, True, True
        self.process.kill()
        self.descendants.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(DIE_S)
        self.reap(now)

    def note_no_start(self, why: str, now: int) -> None:
        """Take note that no process could be started, and try again later."""
        self.failures += 1
        self.state, self.detail = "crashed", f"can't be started: {why}"
        self.not_before_ns = now + int(self._delay_s() * 1e9)
        if self.failures == 1:
            log.warning("sink=%s run=%s %s", self.sink, self.run_dir.name, self.detail)

    def _hold_against_row(self, how: str) -> None:
        """Note the crash in the slot, which names the row the process was at."""
        path = RunDir(self.run_dir).slot(self.sink)
        try:
            if path.exists():
                with closing(Slot(path)) as slot:
                    slot.note_death(how)
        except OSError as exc:
            log.warning("sink=%s run=%s: %s", self.sink, self.run_dir.name, exc)

    def _delay_s(self) -> float:
        delay_s: float = min(self.pauses.first_s * 2.0 ** (self.failures - 1), self.pauses.max_s)
        return delay_s * random.uniform(0.5, 1.0)

    def _let_go(self, now: int) -> None:
        assert self.process is not None and self.process.stdin is not None
        if self.state != "killed":
            self.listen(now)
        self.process.stdin.close()
        os.close(self.report_fd)
        self.process, self.report_fd = None, -1


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(-code).name}"
    return f"ended by signal {-code}"
