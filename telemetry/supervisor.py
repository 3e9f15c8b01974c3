"""The supervisor: one process for each sink and run, watched, restarted, and ended.

In: the directories of runs, with their run.json and cursors.
Out: sink processes, and what is known of each.
Never: reads a journal, or waits for a sink: one that hangs is killed.

Runs on a thread of its own; `snapshot` may be called from any.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from shared.clock import Clock
from shared.ids import RUN_ID
from shared.programs import module_command
from telemetry.files import read_json
from telemetry.runs import RUN_FILE
from telemetry.sinkprocess import SinkProcess, SinkStatus
from telemetry.sinks.cursor import sink_is_done as _has_all
from telemetry.sinks.surroundings import sink_defaults

log = logging.getLogger("telemetry.supervisor")

TURN_S: Final = 0.25
_KEPT: Final = (
    "name", "state", "endings", "wandb_mode", "is_introduced", "run_id", "done", "ending", "row",
)  # fmt: skip
"""Of run.json and the cursors, all that is needed here."""

PROBE_NS: Final = 30_000_000_000
"""Between two tries of one sink by ended runs, while it can't be had."""


def sink_command(sink: str, run_dir: Path, per_core: bool = False) -> list[str]:
    """Return the command that brings one sink of one run up to date, and keeps it there.

    The process has an environment of our own making: what the sidecar's says of runs that
    say nothing themselves goes along as options. per_core: chart each processor core.
    """
    said = sink_defaults(os.environ).items()
    options = [f"--option={name}={value}" for name, value in sorted(said)]
    if per_core:
        options.append("--option=per_core=1")
    run = str(run_dir.absolute())
    return module_command("telemetry", "sink", sink, run, "--follow", *options)


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
        self._probed_ns: dict[str, int] = {}
        """When a sink that could not be had was last tried again, by its name."""
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
            if item.is_at_work:
                item.kill("did not finish in time", self._clock.monotonic_ns())
        self._look()

    def _run(self) -> None:
        while not self._is_ending.wait(TURN_S):
            try:
                self._turn(is_draining=False)
            except Exception:
                log.exception("supervisor failed; it goes on")

    def _turn(self, *, is_draining: bool) -> bool:
        """Look, reap, kill, start. True while there is work that can still be done."""
        wanted, now = self._look(), self._clock.monotonic_ns()
        for item in list(self._sinks_of.values()):
            item.listen(now)
            item.reap(now)
            if item.state == "done":
                self._probed_ns.pop(item.sink, None)
            item.kill_if_hanging(self._sink_timeout_ns, now)
        for key, is_running in wanted:
            item = self._item(key)
            if not is_running and self._is_probed(item):
                continue
            self._start_if_due(item, is_draining=is_draining)
            # A run that goes on without us is brought up to date, not finished.
            if is_draining and is_running:
                item.ask_to_stop()
        if self._is_paused:
            for item in self._sinks_of.values():
                if item.is_at_work and not item.is_stopping:
                    item.kill("paused: no room on disk", now)
        for item in self._sinks_of.values():
            item.tell()
        self._statuses = [item.status for item in self._sinks_of.values()]
        return any(
            item.is_at_work or (is_draining and item.may_recover)
            for item in self._sinks_of.values()
        )

    def _look(self) -> list[tuple[tuple[str, str], bool]]:
        """The (run, sink) pairs with work to do, running runs first, and whether they run."""
        wanted: list[tuple[tuple[str, str], bool]] = []
        for run_dir in self._run_dirs():
            info = self._read(run_dir / RUN_FILE)
            if info is None or "name" not in info:
                continue
            is_running = info.get("state") != "ended"
            for sink in self._sinks:
                if sink == "wandb" and not _is_for_wandb(info):
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
            cached = (version, {key: value[key] for key in _KEPT if key in value})
            self._json_cache[path] = cached
        return cached[1]

    def _item(self, key: tuple[str, str]) -> SinkProcess:
        if key not in self._sinks_of:
            self._sinks_of[key] = SinkProcess(self._runs_dir / key[0], key[1])
        return self._sinks_of[key]

    def _forget_if_idle(self, key: tuple[str, str]) -> None:
        item = self._sinks_of.get(key)
        if item is not None and not item.is_at_work:
            del self._sinks_of[key]

    # --- one process

    def _start_if_due(self, item: SinkProcess, *, is_draining: bool) -> None:
        now = self._clock.monotonic_ns()
        at_work = sum(other.is_at_work for other in self._sinks_of.values())
        if (
            item.is_at_work
            or item.is_rejected
            or self._is_paused
            or now < item.not_before_ns
            or at_work >= self._max_processes
            # While draining, what has stopped once has done what it could.
            or (is_draining and item.started_ns and not item.may_recover)
        ):
            return
        try:
            item.start(self._command(item.sink, item.run_dir), now)
        except OSError as exc:
            # No process to be had, or this run's directory is not what it was: the
            # others go on.
            item.note_no_start(str(exc), now)
            return
        if item.failures:
            self._probed_ns[item.sink] = now

    def _is_probed(self, item: SinkProcess) -> bool:
        """Whether another ended run is asking already if this sink can be had again.

        With hundreds of them, each asking for itself, a server that is away would
        keep this machine busy.
        """
        if item.state != "unavailable":
            return False
        since_ns = self._clock.monotonic_ns() - self._probed_ns.get(item.sink, -PROBE_NS)
        return since_ns < PROBE_NS


def _is_for_wandb(info: dict[str, Any]) -> bool:
    """Return True if W&B is to have this run, or may by now.

    A run that nobody has introduced may be introduced later, with a project and a mode that
    could not be taken back: it goes there when it has ended.
    """
    if info.get("is_introduced") is False and info.get("state") != "ended":
        return False
    return info.get("wandb_mode") != "disabled"
