"""The oracle: what was emitted, against what the journals and every sink hold.

In: side files of trainers; the directories of runs.
Out: counts, and what is wrong in words.
Never: asks the product what is right. What sinks have to show is derived here from what
the trainers wrote down; the sinks' own policies are asked besides, for all that they select.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from shared.events import HARDWARE, Gap, MetricsLogged
from shared.ids import host_of
from telemetry.journal.reader import JournalReader
from telemetry.journal.rows import Row
from telemetry.sinks.wandb.offline import fragment_paths
from telemetry.sinks.wandb.selection import Histogram, Policy
from tests.faults.trainer_process import NUMBER, PROCESS, VALUE, WORKERS_FROM, values_of
from tests.wandb_contents import history_rows

DIRECTORIES_MAX = 16
"""Of TensorBoard, for one session; the workers of a source share theirs."""

Said = tuple[int, int]
"""(process, number): one event of one trainer."""


@dataclass
class Journals:
    """What is in the journals of all runs."""

    order: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    """The numbers of each process, in the order of its journal."""
    steps: dict[Said, int] = field(default_factory=dict)
    run_of: dict[int, str] = field(default_factory=dict)
    durable: Counter[int] = field(default_factory=Counter)
    """Events of each process's session, RunStarted included."""
    rows: int = 0
    hardware: int = 0
    gap_events: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def said(self) -> Counter[Said]:
        return Counter((p, n) for p, numbers in self.order.items() for n in numbers)


class Shown(NamedTuple):
    """The trainers' events as one sink shows them, and what is wrong with the rest."""

    said: Counter[Said]
    faults: list[str]


def read_rows(run_dir: Path, faults: list[str]) -> list[Row]:
    """All rows of a run; damage is a fault, but for tails that a crash has torn."""
    rows: list[Row] = []
    with JournalReader(run_dir / "journal") as reader:
        while (batch := reader.read()).rows or not batch.is_end:
            faults += [f"{run_dir.name}: {damage}" for damage in batch.damage]
            rows += batch.rows
    return rows


def read_journals(rows_of: dict[str, list[Row]]) -> Journals:
    """Check each journal by itself: rows, seqs and payloads."""
    found = Journals()
    for run_id, rows in rows_of.items():
        found.rows += len(rows)
        if [row.row for row in rows] != list(range(len(rows))):
            found.faults.append(f"{run_id}: row numbers are not 0, 1, 2 …")
        _check_seqs(run_id, rows, found.faults)
        session_of: dict[str, int] = {}
        for row in rows:
            event = row.envelope.event()
            if isinstance(event, Gap):
                found.gap_events += event.count
            if not isinstance(event, MetricsLogged):
                continue
            found.hardware += event.kind == HARDWARE
            if PROCESS in event.values:
                process, number = int(event.values[PROCESS]), int(event.values[NUMBER])
                found.order[process].append(number)
                found.steps[process, number] = event.step or 0
                found.run_of[process] = run_id
                if event.values != values_of(process, number):
                    found.faults.append(f"{run_id}: row {row.row} has other values than were said")
                if session_of.setdefault(row.session, process) != process:
                    found.faults.append(f"{run_id}: row {row.row} is of another session")
                if (".worker" in row.source) != (process >= WORKERS_FROM):
                    found.faults.append(f"{run_id}: row {row.row} is of source {row.source}")
        for row in rows:
            if row.session in session_of:
                found.durable[session_of[row.session]] += 1
    return found


def _check_seqs(run_id: str, rows: Iterable[Row], faults: list[str]) -> None:
    """Each stream in order, once, without a hole that no Gap tells of."""
    after: dict[tuple[str, str], int] = {}
    for row in rows:
        key = row.source, row.session
        expected = after.get(key, 0)
        is_hardware = bool(host_of(row.source))
        # A sampler's stream is in the journals of those runs that were active.
        if row.seq < expected or (row.seq > expected and not is_hardware):
            faults.append(f"{run_id}: row {row.row} of {key} has seq {row.seq}, not {expected}")
        after[key] = row.seq + 1


def shown_in_tensorboard(run_dir: Path, rows: list[Row], steps: dict[Said, int]) -> Shown:
    """Read the event files as TensorBoard does, and count every point in them."""
    said: Counter[Said] = Counter()
    faults: list[str] = []
    hardware = 0
    process_of = {(number, values_of(process, number)[VALUE]): process for process, number in steps}
    directories: dict[str, set[str]] = defaultdict(set)
    for directory in sorted(path for path in (run_dir / "tensorboard").iterdir() if path.is_dir()):
        where = f"{run_dir.name}/tensorboard/{directory.name}"
        points = _points_of(directory)
        for tag, found in points.items():
            at = [step for step, _ in found]
            # A step that goes back wipes those above it; of equal ones the last is shown.
            if at != sorted(at):
                faults.append(f"{where}: the steps of {tag} go back")
        if directory.name.startswith("hardware"):
            hardware += len(points.get("~hw/cpu_percent", []))
        # Not the process: its value is the same at every step, and is not written twice at one.
        numbers, values = points.get(NUMBER, []), points.get(VALUE, [])
        if [step for step, _ in numbers] != [step for step, _ in values]:
            faults.append(f"{where}: not every event has all of its values")
            continue
        for (step, number), (_, value) in zip(numbers, values, strict=True):
            process = process_of.get((int(number), value), -1)
            key = process, int(number)
            said[key] += 1
            if steps.get(key) != step:
                faults.append(f"{where}: {key} is shown at step {step} with value {value}")
            directories[_session(directory.name, process)].add(directory.name)
    faults += _too_many(run_dir, directories)
    expected = sum(_has(row, "cpu_percent") for row in rows)
    if hardware != expected:
        faults.append(
            f"{run_dir.name}/tensorboard: {hardware} samples of hardware, in the journal {expected}"
        )
    return Shown(said, faults)


def _session(directory: str, process: int) -> str:
    """Whose the directory is: one session's, or that of all workers of a source."""
    return directory.partition(".worker")[0] + ".worker" if ".worker" in directory else str(process)


def _too_many(run_dir: Path, directories: dict[str, set[str]]) -> list[str]:
    """Directories that two sessions share, and sessions with more of them than are allowed."""
    faults = []
    for session, names in directories.items():
        if len(names) > DIRECTORIES_MAX and not session.endswith(".worker"):
            faults.append(f"{run_dir.name}: process {session} has {len(names)} directories")
    owners = Counter(name for names in directories.values() for name in names)
    for name in (name for name, count in owners.items() if count > 1):
        faults.append(f"{run_dir.name}/tensorboard/{name}: two sessions in one directory")
    return faults


def _points_of(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of every tag, as the loader that shows all of them reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventAccumulator(
        str(directory), size_guidance={"tensors": 0, "scalars": 0}, purge_orphaned_data=False
    )
    files.Reload()
    points = {tag: _points(files, tag) for tag in files.Tags()["tensors"]}
    return points | {
        tag: [(event.step, event.value) for event in files.Scalars(tag)]
        for tag in files.Tags()["scalars"]
    }


def _points(files: Any, tag: str) -> list[tuple[int, float]]:
    """The scalars of a tag; texts and histograms have none."""
    from tensorboard.util.tensor_util import make_ndarray

    arrays = [(event.step, make_ndarray(event.tensor_proto)) for event in files.Tensors(tag)]
    return [(step, float(a)) for step, a in arrays if a.dtype.kind == "f" and a.ndim == 0]


def _has(row: Row, name: str) -> bool:
    event = row.envelope.event()
    return isinstance(event, MetricsLogged) and event.kind == HARDWARE and name in event.values


def shown_in_wandb(run_dir: Path, rows: list[Row]) -> Shown:
    """Read the `.wandb` files, and compare every row with what the policy selects."""
    said: Counter[Said] = Counter()
    faults: list[str] = []
    found: Counter[str] = Counter()
    for path in fragment_paths(run_dir / "wandb", run_dir.name):
        for row in history_rows(path):
            found[_text(row)] += 1
            if PROCESS in row:
                key = int(row[PROCESS]), int(row[NUMBER])
                said[key] += 1
                if row[VALUE] != values_of(*key)[VALUE]:
                    faults.append(f"{path.name}: {key} has value {row[VALUE]}")
    expected = Counter(_selected(rows))
    for kind, wrong in (("misses", expected - found), ("has too much:", found - expected)):
        if wrong:
            faults.append(
                f"{run_dir.name}/wandb {kind} {wrong.total()} rows, {next(iter(wrong))[:200]} first"
            )
    return Shown(said, faults)


def _selected(rows: list[Row]) -> Iterable[str]:
    policy = Policy()
    for row in rows:
        policy, selected = policy.after(row)
        if selected.history is not None:
            values: dict[str, Any] = {"_step": row.row}
            for name, value in selected.history.items():
                if isinstance(value, Histogram):
                    values[f"{name}._type"] = "histogram"
                    values[f"{name}.values"], values[f"{name}.bins"] = value.counts, value.edges
                else:
                    values[name] = value
            yield _text(values)


def _text(values: dict[str, Any]) -> str:
    """A row as text: NaN is not equal to itself, and `_runtime` is wandb-core's own."""
    kept = {n: _rounded(v) for n, v in values.items() if n != "_runtime"}
    return json.dumps(kept, sort_keys=True)


def _rounded(value: Any) -> Any:
    """JSON has no difference between 1 and 1.0, and wandb writes a microsecond less or more."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return round(float(value), 4) if is_number and math.isfinite(value) else value
