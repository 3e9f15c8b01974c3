"""Watch: follows the runs of a data directory, and gives a snapshot of what they say.

In: a data directory with or without a sidecar at work, or the directory of one run.
Out: `Snapshot`, plain values that another thread may show.
Never: writes anything.

A run that has not ended is followed from its first row; the host's own run from its last
rows; of ended runs the newest one is, and the others are named only.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from shared.ids import host_run_id, sanitized_host
from telemetry.datadir import holder_of, is_held
from telemetry.journal.layout import segments
from telemetry.journal.readable import is_written
from telemetry.monitor.figures import loss_name
from telemetry.monitor.snapshot import HostLine, RunLine, SinkLag, Snapshot
from telemetry.run_dir import CursorFile, RunDir, RunFile, read, runs_of
from telemetry.views.follow import Hardware, RunView, as_number, opened
from telemetry.views.run_state import state_of
from telemetry.views.series import Sample

FOLLOWED_MAX: Final = 16
LISTED_MAX: Final = 200
LOOK_S: Final = 1.0
"""Time between two looks at which runs there are, in s."""
QUIET_S: Final = 20.0
"""A machine without a sample for so long is shown as gone."""


class Watch:
    """Follows runs. Not thread-safe: the thread that polls also takes the snapshots."""

    def __init__(self, place: Path, *, is_run: bool) -> None:
        """Watch a data directory, or with is_run the directory of one run."""
        self._place, self._is_run = place, is_run
        self._views: dict[str, RunView] = {}
        self._infos: dict[str, RunFile] = {}
        self._dirs: dict[str, RunDir] = {}
        self._looked_s = 0.0
        self._is_complete = False
        self._problems: tuple[str, ...] = ()

    def close(self) -> None:
        for view in self._views.values():
            view.close()

    def poll(self, seconds_max: float = 0.2) -> bool:
        """Read on for about seconds_max; return True if all was read up to its end."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_S or not self._looked_s:
            self._looked_s = now_s
            self._look()
        views = list(self._views.values())
        ends = [view.poll(seconds_max / len(views)) for view in views]
        self._is_complete = all(ends)
        return self._is_complete

    def snapshot(self) -> Snapshot:
        """Return the present state."""
        now_s = time.time()
        runs = [self._line(run_id, now_s) for run_id in self._dirs]
        runs.sort(key=lambda run: (not run.is_running, run.is_host, -run.started_s))
        pid = "" if self._is_run or not is_held(self._place) else holder_of(self._place)[0]
        return Snapshot(
            wall_s=now_s,
            place=str(self._place),
            sidecar=pid,
            hosts=self._hosts(now_s),
            runs=tuple(runs),
            is_complete=self._is_complete,
            problems=self._problems,
            trainers=self._trainers() if pid else {},
        )

    def _look(self) -> None:
        """Find the runs, and open those that are to be followed."""
        self._dirs = {path.name: RunDir(path) for path in self._found()}
        for run_id, run_dir in self._dirs.items():
            found = read(run_dir.run_file, RunFile)
            self._infos[run_id] = found or self._infos.get(run_id, RunFile())
        for run_id in [name for name in self._views if name not in self._dirs]:
            self._views.pop(run_id).close()
            self._infos.pop(run_id, None)
        for run_id in self._wanted():
            if run_id not in self._views:
                self._open(run_id)

    def _found(self) -> list[Path]:
        if self._is_run:
            return [self._place]
        try:
            found = [path for path in runs_of(self._place).iterdir() if path.is_dir()]
            found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        except FileNotFoundError:
            # A sidecar has not made it yet, or retention removes a run at this moment.
            return [run_dir.path for run_dir in self._dirs.values() if run_dir.path.is_dir()]
        except OSError as exc:
            self._problems = (f"{self._place} can't be read: {exc.strerror}",)
            return [run_dir.path for run_dir in self._dirs.values()]
        self._problems = ()
        return found[:LISTED_MAX]

    def _wanted(self) -> list[str]:
        """Return the runs to follow: those at work, and the newest that has ended."""
        ended = [name for name in self._dirs if self._is_ended(name) and not self._is_host(name)]
        others = [name for name in self._dirs if name not in ended]
        return (others + ended[:1])[:FOLLOWED_MAX]

    def _open(self, run_id: str) -> None:
        journal = self._dirs[run_id].journal
        is_recorded = self._is_run and not is_written(journal)
        from_tail = self._is_host(run_id) and not self._is_run
        if view := opened(journal, is_recorded=is_recorded, from_tail=from_tail):
            self._views[run_id] = view

    def _is_ended(self, run_id: str) -> bool:
        return self._infos[run_id].is_ended

    def _is_host(self, run_id: str) -> bool:
        """Return True for the run in which a sidecar records its machine while nothing trains."""
        host = self._infos[run_id].host
        return host is not None and run_id == host_run_id(host)

    def _hosts(self, now_s: float) -> tuple[HostLine, ...]:
        """Return each machine as the run that heard of it last has it.

        Samples go into every run at work, or into the host's own: the points of the last
        hour are put together from all of them.
        """
        by_name: dict[str, list[Hardware]] = {}
        for view in self._views.values():
            for name, hardware in view.hardware.items():
                by_name.setdefault(name, []).append(hardware)
        lines = []
        for name, seen in sorted(by_name.items()):
            newest = max(seen, key=lambda hardware: hardware.wall_s)
            is_quiet = not self._is_run and now_s - newest.wall_s > QUIET_S
            line = HostLine(name, newest.wall_s, newest.values, _merged(seen), is_quiet)
            lines.append(line)
        return tuple(lines)

    def _trainers(self) -> dict[int, str]:
        """Return the training processes that runs have named on this machine, by pid."""
        here = sanitized_host(socket.gethostname())
        return {
            process.pid: f"{source} of {run_id}"
            for run_id, info in self._infos.items()
            if not info.is_ended
            for source, process in (info.processes or {}).items()
            if sanitized_host(process.host) == here
        }

    def _line(self, run_id: str, now_s: float) -> RunLine:
        info, view = self._infos[run_id], self._views.get(run_id)
        rows = view.rows_on_disk if view else 0
        last_s = view.last_wall_s or None if view else None
        base = RunLine(
            run_id=run_id,
            name=info.name or run_id,
            project=info.project or "",
            state=state_of(info, last_s, now_s, is_attended=True),
            is_host=self._is_host(run_id),
            rows=rows,
            started_s=(info.started_wall_ns or 0) / 1e9,
            sinks=sink_lags(self._dirs[run_id], rows),
        )
        return base if view is None else _with_values(base, view, info)


def _with_values(line: RunLine, view: RunView, info: RunFile) -> RunLine:
    latest, curves = view.latest, view.curves
    name = loss_name(latest)
    total_steps = _count((info.config or {}).get("total_steps"))
    speed = view.steps_per_second
    left = None
    if total_steps and speed and view.step is not None and line.is_running:
        left = max(0, total_steps - view.step) / speed
    curve, val_curve = curves.get(name), curves.get("val/loss")
    return replace(
        line,
        read_ratio=view.read_ratio,
        step=view.step,
        total_steps=total_steps,
        loss_name=name,
        loss=as_number(latest.get(name), finite=False),
        val_loss=as_number(latest.get("val/loss"), finite=False),
        stage=str(latest.get("train/training_stage", "")),
        tokens_per_second=as_number(latest.get("train/tokens_per_second")),
        seconds_left=left,
        steps_per_second=speed,
        gap_events=view.gap_events,
        damaged_parts=view.damaged_parts,
        curve=tuple(curve.points) if curve else (),
        is_thinned=bool(curve and curve.is_thinned),
        val_curve=tuple(val_curve.points) if val_curve else (),
        messages=tuple(view.messages),
        alerts=view.open_alerts,
    )


def sink_lags(run_dir: RunDir, rows: int) -> tuple[SinkLag, ...]:
    """Return how far each sink of a run is, by its cursor."""
    lags = []
    for path in sorted(run_dir.cursors.glob("*.json")):
        cursor = read(path, CursorFile) or CursorFile()
        lags.append(SinkLag(path.stem, max(0, rows - cursor.row), cursor.done))
    return tuple(lags)


def _merged(seen: Sequence[Hardware]) -> dict[str, list[Sample]]:
    if len(seen) == 1:
        return {name: list(window.points) for name, window in seen[0].windows.items()}
    merged: dict[str, dict[float, Sample]] = {}
    for hardware in seen:
        for name, window in hardware.windows.items():
            merged.setdefault(name, {}).update({point.x: point for point in window.points})
    return {name: [points[x] for x in sorted(points)] for name, points in merged.items()}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def is_run_dir(path: Path) -> bool:
    """Return True if a path is the directory of one run, with a journal in it."""
    journal = RunDir(path).journal
    return journal.is_dir() and bool(segments(journal))
