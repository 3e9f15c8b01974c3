"""The supervisor: one process for each sink and run, watched, restarted, and ended.

In: the directories of runs, with their run.json and cursors.
Out: sink processes, and what is known of each.
Never: reads a journal, or waits for a sink: one that hangs is killed.

Runs on a thread of its own; `snapshot` may be called from any.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from shared.clock import Clock
from shared.ids import RUN_ID
from telemetry.errors import EXIT_FAULT, EXIT_OK, EXIT_RUNNING
from telemetry.files import read_json
from telemetry.runs import RUN_FILE

log = logging.getLogger("telemetry.supervisor")

TURN_S: Final = 0.25
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 300.0
DIE_S: Final = 1.0
"""A killed process that takes longer hangs in the kernel, and is looked after later."""

STEADY_S: Final = 60.0
"""A sink that worked for so long begins again with the shortest back-off."""


class SinkStatus(NamedTuple):
    """What is known of one sink of one run."""

    run_id: str
    sink: str
    state: str
    row: int
    restarts: int
    detail: str


@dataclass
class SinkProcess:
    """One (run, sink): the process that is at work, or when the next may start."""

    run_dir: Path
    sink: str
    process: subprocess.Popen[bytes] | None = None
    report_fd: int = -1
    partial: bytes = b""
    state: str = "waiting"
    detail: str = ""
    row: int = 0
    started_ns: int = 0
    heard_ns: int = 0
    not_before_ns: int = 0
    failures: int = 0
    restarts: int = 0
    is_rejected: bool = False
    is_stopping: bool = False
    """The process was asked to stop, or killed."""
    descendants: dict[int, float] = field(default_factory=dict)
    """pid -> start time of every process it has started, for killing them all."""


def sink_command(sink: str, run_dir: Path) -> list[str]:
    """What brings one sink of one run up to date, and keeps it there."""
    return [sys.executable, "-m", "telemetry", "sink", sink, str(run_dir), "--follow"]


class Supervisor:
    """Keeps the sinks of every run at work until each has all of it."""

    def __init__(
        self,
        runs_dir: Path,
        sinks: tuple[str, ...],
        clock: Clock,
        *,
        max_processes: int,
        sink_timeout_s: float,
        command: Callable[[str, Path], list[str]] = sink_command,
    ) -> None:
        self._runs_dir = runs_dir
        self._sinks = sinks
        self._clock = clock
        self._max_processes = max_processes
        self._sink_timeout_ns = int(sink_timeout_s * 1e9)
        self._command = command
        self._sinks_of: dict[tuple[str, str], SinkProcess] = {}
        self._json_cache: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}
        self._statuses: list[SinkStatus] = []
        self._backlog: set[tuple[str, str]] = set()
        self._is_paused = False
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor")

    def start(self) -> None:
        self._thread.start()

    def pause(self, is_paused: bool) -> None:
        """While the disk is full sinks rest: some write corrupt files then."""
        self._is_paused = is_paused

    def snapshot(self) -> list[SinkStatus]:
        """What is known of each sink that is or was at work."""
        return self._statuses

    @property
    def backlog(self) -> set[tuple[str, str]]:
        """The (run, sink) pairs that do not have all of their run yet."""
        return self._backlog

    def end(self, timeout_s: float) -> None:
        """Let the sinks come to the end of what is on disk; after timeout_s, end them.

        May be called twice, and without a start.
        """
        deadline_ns = self._clock.monotonic_ns() + int(timeout_s * 1e9)
        self._is_ending.set()
        if self._thread.ident is not None:
            self._thread.join()
        while self._clock.monotonic_ns() < deadline_ns and self._turn(is_draining=True):
            threading.Event().wait(0.05)
        for item in self._sinks_of.values():
            if item.process is not None:
                self._kill(item, "did not finish in time")
        self._look()

    def _run(self) -> None:
        while not self._is_ending.wait(TURN_S):
            try:
                self._turn(is_draining=False)
            except Exception:
                log.exception("supervisor failed; it goes on")

    def _turn(self, *, is_draining: bool) -> bool:
        """Look, reap, kill, start. True while there is work that can still be done."""
        wanted = self._look()
        for item in list(self._sinks_of.values()):
            self._listen(item)
            self._reap(item)
            self._kill_if_hanging(item)
        for key, is_running in wanted:
            item = self._item(key)
            self._start_if_due(item, is_draining=is_draining)
            # A run that goes on without us is brought up to date, not finished. Who has
            # not reported yet does not know how to stop: the signal would kill it.
            if (
                is_draining
                and is_running
                and item.process is not None
                and item.state != "starting"
                and not item.is_stopping
            ):
                item.is_stopping = True
                item.process.terminate()
        if self._is_paused:
            for item in self._sinks_of.values():
                if item.process is not None and not item.is_stopping:
                    self._kill(item, "paused: no room on disk")
        self._statuses = [
            SinkStatus(i.run_dir.name, i.sink, i.state, i.row, i.restarts, i.detail)
            for i in self._sinks_of.values()
        ]
        return any(item.process is not None for item in self._sinks_of.values())

    def _look(self) -> list[tuple[tuple[str, str], bool]]:
        """The (run, sink) pairs with work to do, running runs first, and whether they run."""
        wanted: list[tuple[tuple[str, str], bool]] = []
        for run_dir in self._run_dirs():
            info = self._read(run_dir / RUN_FILE)
            if info is None or "name" not in info:
                continue
            is_running = info.get("state") != "ended"
            for sink in self._sinks:
                if sink == "wandb" and info.get("wandb_mode") == "disabled":
                    continue
                cursor = self._read(run_dir / "cursors" / f"{sink}.json")
                if is_running or not _has_all(cursor, info):
                    wanted.append(((run_dir.name, sink), is_running))
                else:
                    self._forget_if_idle((run_dir.name, sink))
        self._backlog = {key for key, _ in wanted}
        return sorted(wanted, key=lambda pair: not pair[1])

    def _run_dirs(self) -> Iterator[Path]:
        if self._runs_dir.is_dir():
            # Anything else there, a repaired copy for one, is no run of ours.
            names = (path.name for path in self._runs_dir.iterdir())
            yield from (self._runs_dir / name for name in sorted(filter(RUN_ID.fullmatch, names)))

    def _read(self, path: Path) -> dict[str, Any] | None:
        """A JSON file, parsed again only when it has changed."""
        try:
            status = path.stat()
        except OSError:
            return None
        # Replaced twice within the resolution of its time, a file is still another one.
        version = status.st_mtime_ns, status.st_ino
        cached = self._json_cache.get(path)
        if cached is None or cached[0] != version:
            value = read_json(path)
            if value is None:
                return None
            kept = ("name", "state", "endings", "wandb_mode", "done", "ending", "row")
            cached = (version, {key: value[key] for key in kept if key in value})
            self._json_cache[path] = cached
        return cached[1]

    def _item(self, key: tuple[str, str]) -> SinkProcess:
        if key not in self._sinks_of:
            self._sinks_of[key] = SinkProcess(self._runs_dir / key[0], key[1])
        return self._sinks_of[key]

    def _forget_if_idle(self, key: tuple[str, str]) -> None:
        item = self._sinks_of.get(key)
        if item is not None and item.process is None:
            del self._sinks_of[key]

    # --- one process

    def _start_if_due(self, item: SinkProcess, *, is_draining: bool) -> None:
        now = self._clock.monotonic_ns()
        at_work = sum(1 for other in self._sinks_of.values() if other.process is not None)
        if (
            item.process is not None
            or item.is_rejected
            or self._is_paused
            or now < item.not_before_ns
            or at_work >= self._max_processes
            # While draining, what has stopped once has done what it could.
            or (is_draining and item.started_ns)
        ):
            return
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_fd, False)
        command = self._command(item.sink, item.run_dir)
        command += ["--exit-with-stdin", "--report-fd", str(write_fd)]
        try:
            item.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=[write_fd], start_new_session=True
            )
        except OSError:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        item.report_fd, item.partial = read_fd, b""
        item.started_ns = item.heard_ns = now
        item.state, item.is_stopping, item.descendants = "starting", False, {}

    def _listen(self, item: SinkProcess) -> None:
        """Take in what the process reported, and record what it has started."""
        if item.report_fd < 0:
            return
        try:
            data = os.read(item.report_fd, 1 << 16)
        except BlockingIOError:
            data = b""
        if data:
            item.heard_ns = self._clock.monotonic_ns()
            *lines, item.partial = (item.partial + data).split(b"\n")
            for line in lines[-1:]:
                report = json.loads(line)
                item.state, item.row = report["state"], report["row"]
                item.detail = report["detail"]
            self._record_descendants(item)

    def _record_descendants(self, item: SinkProcess) -> None:
        assert item.process is not None
        try:
            for child in psutil.Process(item.process.pid).children(recursive=True):
                item.descendants[child.pid] = child.create_time()
        except psutil.Error:
            pass

    def _reap(self, item: SinkProcess) -> None:
        if item.process is None or (code := item.process.poll()) is None:
            return
        self._let_go(item)
        if code != EXIT_OK:
            # What it leaves behind would go on in the way of the next one.
            self._kill_descendants(item)
        now = self._clock.monotonic_ns()
        if code == EXIT_OK:
            item.failures, item.not_before_ns = 0, now
            return
        if code == EXIT_FAULT:
            item.is_rejected, item.state = True, "rejected"
            return
        if now - item.started_ns > STEADY_S * 1e9:
            item.failures = 0
        item.failures += 1
        item.restarts += 1
        delay_s = min(BACKOFF_FIRST_S * 2 ** (item.failures - 1), BACKOFF_MAX_S)
        delay_s *= random.uniform(0.5, 1.0)
        item.not_before_ns = now + int(delay_s * 1e9)
        if item.state not in ("unavailable", "killed"):
            item.state, item.detail = "crashed", f"exit code {code}"
        if item.failures in (1, 5) and code != EXIT_RUNNING:
            log.warning(
                "sink=%s run=%s %s (%s), retry_s=%.0f",
                item.sink, item.run_dir.name, item.state, item.detail, delay_s,
            )  # fmt: skip

    def _kill_if_hanging(self, item: SinkProcess) -> None:
        silent_ns = self._clock.monotonic_ns() - item.heard_ns
        is_killed = item.state == "killed"
        if item.process is not None and not is_killed and silent_ns > self._sink_timeout_ns:
            self._kill(item, f"hung for {silent_ns / 1e9:.0f} s in state {item.state!r}")

    def _kill(self, item: SinkProcess, why: str) -> None:
        """End the process and all it has started: wandb-core has a session of its own."""
        assert item.process is not None
        log.warning("sink=%s run=%s killed: %s", item.sink, item.run_dir.name, why)
        self._record_descendants(item)
        self._listen(item)
        item.state, item.detail, item.is_stopping = "killed", why, True
        item.process.kill()
        self._kill_descendants(item)
        with contextlib.suppress(subprocess.TimeoutExpired):
            item.process.wait(DIE_S)
        self._reap(item)

    def _kill_descendants(self, item: SinkProcess) -> None:
        for pid, start_time in item.descendants.items():
            _kill_if_same(pid, start_time)
        item.descendants = {}

    def _let_go(self, item: SinkProcess) -> None:
        assert item.process is not None and item.process.stdin is not None
        if item.state != "killed":
            self._listen(item)
        item.process.stdin.close()
        os.close(item.report_fd)
        item.process, item.report_fd = None, -1


def _has_all(cursor: dict[str, Any] | None, info: dict[str, Any]) -> bool:
    """The sink was done, and with the last end of its run: late events bring another."""
    if cursor is None or not cursor.get("done"):
        return False
    return bool(cursor.get("ending", 0) == info.get("endings", 0))


def _kill_if_same(pid: int, start_time: float) -> None:
    try:
        if psutil.Process(pid).create_time() == start_time:
            os.kill(pid, signal.SIGKILL)
    except (psutil.Error, ProcessLookupError):
        pass
