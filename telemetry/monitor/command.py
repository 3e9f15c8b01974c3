"""The command `monitor`: a sidecar of its own, or one that is at work, and a view of it.

In: the configuration of `serve`, and what to look at.
Out: a screen; or text, or JSON, once or again and again.
Never: a screen where there is no terminal; a sidecar left behind.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from telemetry.commands.own_sidecar import Sidecar
from telemetry.config import ServeConfig
from telemetry.datadir import is_held
from telemetry.errors import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_OK, CommandError
from telemetry.journal.layout import MARK_NAME
from telemetry.monitor.pieces import Room
from telemetry.monitor.processes import Processes
from telemetry.monitor.snapshot import Snapshot
from telemetry.monitor.text import json_value, plain_text
from telemetry.monitor.watch import Watch, is_run_dir
from telemetry.run_dir import runs_of
from telemetry.summary import print_summary

LOG_NAME: Final = "monitor.log"
FIRST_SAMPLES: Final = 3
"""Samples before `--once` prints: rates need two, and the first of all is short of some."""
PROCESSES_S: Final = 0.2
"""Time between the first two readings of the machine's processes, in s."""
FIRST_S: Final = 15.0
"""Longest wait for them, in s."""


@dataclass(frozen=True)
class Look:
    """The run to look at, and the form to show it in."""

    attach: Path | None = None
    once: bool = False
    is_json: bool = False
    is_text: bool = False
    interval_s: float = 5.0

    @property
    def needs_screen(self) -> bool:
        return not (self.once or self.is_json or self.is_text)


def monitor(config: ServeConfig, look: Look) -> int:
    """Show the machine and its runs until the user ends it, and return the exit code.

    Raises:
        CommandError: there is nothing at the path to attach to.
    """
    place = look.attach if look.attach is not None else config.data_dir
    is_run = is_run_dir(place)
    if look.attach is not None and not is_run and not (place / "runs").is_dir():
        raise CommandError(f"{place} is neither a data directory nor the directory of a run")
    is_screen = look.needs_screen and _has_terminal()
    sidecar = None
    if look.attach is None and not is_held(config.data_dir):
        sidecar = Sidecar(config, log=_log_file(config) if is_screen else None)
        sidecar.keep()
    started_s = time.time()
    watch = Watch(place, is_run=is_run)
    try:
        show = _screen if is_screen else _lines
        return show(watch, look, sidecar)
    finally:
        watch.close()
        if sidecar is not None:
            sidecar.drain(config.drain_grace_s + 5)
            if is_screen:
                _say_where(config, started_s)


def _has_terminal() -> bool:
    """Return True if a screen can be drawn; else say why there are lines instead."""
    why = ""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        why = "this is no terminal"
    elif os.environ.get("TERM", "dumb") == "dumb":
        why = "this terminal can't draw (TERM is dumb)"
    elif importlib.util.find_spec("textual") is None:
        why = "the package textual is not installed"
    if why:
        print(f"telemetry: {why}: lines are printed instead of a screen", file=sys.stderr)
    return not why


def _log_file(config: ServeConfig) -> Path:
    """Return where the sidecar logs while a screen has the terminal."""
    try:
        config.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CommandError(f"{config.data_dir} can't be written: {exc.strerror}") from exc
    return config.data_dir / LOG_NAME


def _screen(watch: Watch, look: Look, sidecar: Sidecar | None) -> int:
    del look
    from telemetry.monitor.screen import MonitorApp

    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    is_ascii = encoding not in ("utf8", "utf16", "utf32")
    keep = sidecar.keep if sidecar is not None else lambda: None
    app = MonitorApp(watch, is_ascii=is_ascii, keep=keep)
    app.run()
    if sidecar is not None and sidecar.is_hopeless:
        return EXIT_FAULT
    return app.return_code or EXIT_OK


def _lines(watch: Watch, look: Look, sidecar: Sidecar | None) -> int:
    """Print snapshots, one or more, until a signal."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    deadline_s = time.monotonic() + FIRST_S
    keep = sidecar.keep if sidecar is not None else lambda: None
    # 1. All that is on disk, and of a sidecar that has just started some samples.
    while not stop.is_set():
        keep()
        if sidecar is not None and sidecar.is_hopeless:
            return EXIT_FAULT
        is_end = watch.poll()
        snapshot = watch.snapshot()
        has_begun = look.attach is not None or _samples(snapshot) >= FIRST_SAMPLES
        if is_end and (has_begun or time.monotonic() > deadline_s):
            break
        stop.wait(0.1)
    # 2. The same again and again, as often as asked for. CPU takes two readings of a process.
    processes = Processes()
    if watch.snapshot().sidecar:
        processes.read({})
        stop.wait(PROCESSES_S)
    while not stop.is_set():
        snapshot = watch.snapshot()
        # Of another machine, or of what was recorded long ago, there are none here.
        if snapshot.sidecar:
            snapshot = replace(snapshot, processes=processes.read(snapshot.trainers))
        _print(snapshot, look)
        if look.once:
            return EXIT_OK
        _poll_for(watch, look.interval_s, stop, keep)
    return EXIT_INTERRUPTED if look.once else EXIT_OK


def _poll_for(
    watch: Watch, seconds: float, stop: threading.Event, keep: Callable[[], None]
) -> None:
    deadline_s = time.monotonic() + seconds
    while not stop.is_set() and time.monotonic() < deadline_s:
        keep()
        watch.poll()
        stop.wait(min(0.5, max(0.0, deadline_s - time.monotonic())))


def _samples(snapshot: Snapshot) -> int:
    counts = [
        len(points)
        for host in snapshot.hosts
        if not host.is_quiet
        for points in host.points.values()
    ]
    return max(counts, default=0)


def _print(snapshot: Snapshot, look: Look) -> None:
    if look.is_json:
        print(json.dumps(json_value(snapshot), allow_nan=False), flush=True)
        return
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    width = max(20, shutil.get_terminal_size((100, 24)).columns)
    room = Room(width, is_ascii=encoding not in ("utf8", "utf16", "utf32"))
    print(plain_text(snapshot, room), "" if look.once else "\n", sep="\n", end="", flush=True)


def _say_where(config: ServeConfig, since_s: float) -> None:
    """Print which runs got rows since a time, after the screen is gone."""
    runs_dir = runs_of(config.data_dir)
    marks = runs_dir.glob(f"*/journal/{MARK_NAME}")
    written = [path.parents[1].name for path in marks if path.stat().st_mtime >= since_s]
    print_summary(runs_dir, sorted(written), ())
    print(f"telemetry: the sidecar's log is {config.data_dir / LOG_NAME}", file=sys.stderr)
