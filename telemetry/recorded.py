"""Recorded runs: reads the facts of a run from run.json, or from its journal alone.

In: the directory of a run that nobody writes.
Out: its run.json, or what that would say, learned from the journal; and what is damaged.
Never: changes anything in that directory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from shared.clock import SystemClock
from shared.ids import RUN_ID
from telemetry.datadir import check_run_dir
from telemetry.errors import CommandError
from telemetry.journal.layout import MARK_NAME, Mark, read_mark, segments
from telemetry.journal.reader import JournalReader, NotAJournal
from telemetry.journal.scan import HOLE, TAIL, Damage
from telemetry.json_files import DamagedFile
from telemetry.run_dir import ENDED, RunDir, RunFile, load
from telemetry.run_info import RunInfo, lifecycle_events


@dataclass(frozen=True)
class Recorded:
    """A recorded run, and what run.json says of it, or would say."""

    run_dir: Path
    facts: RunFile
    damaged: list[str]
    """What is wrong with the files beside the journal, in words."""

    @property
    def run_id(self) -> str:
        return self.facts.run_id


def open_recorded(run_dir: Path) -> Recorded:
    """Find out what a run is called and how it ended.

    Raises:
        CommandError: it is not the directory of a run.
    """
    check_run_dir(run_dir)
    try:
        if not segments(RunDir(run_dir).journal):
            raise CommandError(f"{run_dir} is not a recorded run: its journal/ has no segment")
        facts, damaged = _run_file(run_dir)
        damaged += damaged_mark(run_dir)
        if facts is None:
            facts = _learned(run_dir)
    except (OSError, NotAJournal) as exc:
        raise CommandError(f"{run_dir} can't be read: {exc}") from exc
    return Recorded(run_dir, facts, damaged)


def damaged_mark(run_dir: Path) -> list[str]:
    """Say what is wrong with the journal's durable mark. One that is not there is no damage."""
    journal = RunDir(run_dir).journal
    if (journal / MARK_NAME).exists() and read_mark(journal) is None:
        return [f"journal/{MARK_NAME} is not readable; all whole records are taken as durable"]
    return []


def missing_rows(run_dir: Path) -> tuple[int, list[Damage]]:
    """Count the rows of a journal that can't be read, and say where they are.

    A torn tail is no damage: it was never acknowledged.
    """
    journal = RunDir(run_dir).journal
    mark = read_mark(journal)
    damage: list[Damage] = []
    found = 0
    with JournalReader(journal, is_recorded=True) as reader:
        while True:
            batch = reader.read()
            found += len(batch.rows)
            damage += [item for item in batch.damage if item.kind != TAIL]
            if batch.is_end:
                break
        damage += cut_off(mark, reader.next_row)
        end = max([reader.next_row, *(item.next_row or 0 for item in damage)])
    return end - found, damage


def cut_off(mark: Mark | None, end_row: int) -> list[Damage]:
    """Return the rows that the durable mark promises behind the end of what is there.

    The mark is one that was read before the journal: a writer may add to both meanwhile.
    """
    if mark is None or mark.next_row <= end_row:
        return []
    return [Damage(HOLE, 0, 0, end_row, mark.next_row, "they were on disk once")]


def _run_file(run_dir: Path) -> tuple[RunFile | None, list[str]]:
    """Return what run.json says; None where it is not there, or says what can't be."""
    path = RunDir(run_dir).run_file
    try:
        run = load(path, RunFile)
    except DamagedFile as exc:
        return None, [f"{exc}; what the journal says is shown"]
    if run is None:
        return None, []
    if not RUN_ID.fullmatch(run.run_id):
        return None, [f"{path.name} has run_id {run.run_id!r}; what the journal says is shown"]
    if not (run.is_shown and run.state):
        return None, [f"{path.name} is not of a run of ours; what the journal says is shown"]
    return run, []


def _learned(run_dir: Path) -> RunFile:
    told = RunInfo(run_dir, _journaled_run_id(run_dir), SystemClock())
    told.forget()
    for row, event in lifecycle_events(RunDir(run_dir).journal, 0, is_recorded=True):
        told.learn(
            row.session, row.source, event, is_late=row.is_late, wall_ns=row.envelope.wall_ns
        )
    if not told.is_introduced:
        told.introduce_by_id()
    told.file.state = ENDED
    return told.file


def _journaled_run_id(run_dir: Path) -> str:
    """Return the run id that most streams of the journal have; else the directory's name."""
    with JournalReader(RunDir(run_dir).journal, is_recorded=True) as reader:
        while not reader.read().is_end:
            pass
        ids = Counter(stream.run_id for stream in reader.streams.values())
    named = [run_id for run_id, _ in ids.most_common() if RUN_ID.fullmatch(run_id)]
    return named[0] if named else run_dir.resolve().name
