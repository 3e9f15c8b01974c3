"""A chaos run: trainers, sidecar and sinks killed and frozen at random, and then counted.

The sidecar's disk stands still now and then, and it has few descriptors. Trainers repeat
steps, fork workers that emit, are started again at once or twice under one id, and some
leave a spool that is found when others have gone on.

    python -m tests.faults.chaos --minutes 5 --seed 1 [--kills 300]

In: for how long, and the seed of the dice.
Out: a table of what was emitted, journaled and shown, and what each kill hit; exit code 1
where anything was lost, doubled or invented, and the directory is kept then.
Never: signals a process that it did not start, or leaves the machine.

The same seed throws the same dice. What they hit depends on the machine's timing as well.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from telemetry.journal.rows import Row
from telemetry.json_files import read_json
from tests.faults import oracle
from tests.faults.oracle import Said
from tests.faults.plant import SINKS, Kill, Plant, Target, Trainer
from tests.faults.trainer_process import last_emitted, read_side_file
from tests.telemetry.waiting import wait_until

SLOTS = tuple((run, rank) for run in ("chaos-a", "chaos-b") for rank in ("rank0", "rank1"))
RATE_HZ = 50.0
AWAY_MARGIN_NS = 1_000_000_000
"""A trainer's kill within so long of a disturbed sidecar counts as one with it away."""

THERE_MS, AWAY_MS = 10, 100
"""What a kill -9 of a trainer may cost, by promise, beside what the disk and a busy machine add."""

BUSY_MS = 900
"""A kill that cost more than the promise and this is a fault; any above the promise is told."""

DRAIN_S = 300.0

STALL_MAX_S = 6.0
LATE_S = 8.0
"""So long after its end a trainer's own spool is found."""

TWINS_MAX = 2
NEVER_S = float("inf")
PATIENCE_S = 20.0
"""A wandb-core needs so long, on a busy machine, to be there and have rows before it."""


class Slot:
    """A place in a run that one trainer after the other fills."""

    def __init__(self, run_id: str, source: str) -> None:
        self.run_id = run_id
        self.source = source
        self.trainer: Trainer | None = None
        self.start_at_s = 0.0

    @property
    def is_at_work(self) -> bool:
        """It runs, and has begun to emit."""
        return (
            self.trainer is not None
            and self.trainer.is_running
            and last_emitted(self.trainer.side) is not None
        )

    @property
    def is_acknowledged(self) -> bool:
        """The sidecar knows it, live: one that has only a spool would come late."""
        last = None if self.trainer is None else last_emitted(self.trainer.side)
        return last is not None and last.acknowledged > 0

    def next_step(self, dice: random.Random) -> int:
        """Where a checkpoint of a little while ago lets the next one begin."""
        last = None if self.trainer is None else last_emitted(self.trainer.side)
        if self.trainer is None or last is None:
            return 0
        return max(0, self.trainer.first_step + last.number - dice.randrange(40))


class Chaos:
    """The dice, and what they do to a plant."""

    def __init__(self, plant: Plant, dice: random.Random) -> None:
        self.plant = plant
        self.dice = dice
        self.slots = [Slot(*slot) for slot in SLOTS]
        self.sidecar_at_s = 0.0
        self.spared_until_s = 0.0
        self.endings: Counter[str] = Counter()
        self.twins: list[tuple[float, Trainer]] = []
        """Second jobs under the id of a first, and when each is killed."""
        # Those that are there seldom (a sink needs seconds to start) come often.
        self.actions: dict[Callable[[], bool], int] = {
            self.kill_trainer: 22,
            self.kill_sidecar: 14,
            self.kill_sink: 30,
            self.kill_core: 60,
            self.kill_sampler: 4,
            self.kill_all: 3,
            self.end_trainer: 5,
            self.freeze: 12,
            self.stall_disk: 5,
            self.fork_worker: 12,
            self.start_twin: 4,
        }

    def keep_up(self) -> None:
        """Start what is due, continue what was frozen."""
        now = time.monotonic()
        self.plant.thaw()
        self.plant.end_stall()
        self.plant.reap()
        self.plant.bring_late_spools(LATE_S)
        self._end_twins(now)
        self.plant.note_sidecar_is_back()
        if not self.plant.is_sidecar_up and now >= self.sidecar_at_s:
            self.plant.start_sidecar()
            # Killed as often as all the rest, no wandb sink would come as far as a wandb-core.
            self.spared_until_s = now + self.dice.choice((0.0, PATIENCE_S))
        for slot in self.slots:
            is_free = slot.trainer is None or slot.trainer.popen.poll() is not None
            if is_free and now >= slot.start_at_s:
                step, is_late = slot.next_step(self.dice), self.dice.random() < 0.2
                slot.trainer = self.plant.start_trainer(
                    slot.run_id, slot.source, step, is_late=is_late
                )

    def act(self) -> str:
        """Do one thing to something that is there; its name."""
        actions = list(self.actions)
        (action,) = self.dice.choices(actions, list(self.actions.values()))
        return action.__name__ if action() else ""

    def kill_trainer(self) -> bool:
        return self._end_one("os_exit" if self.dice.random() < 0.25 else "kill")

    def end_trainer(self) -> bool:
        how = self.dice.choice(("exit", "raise", "finish"))
        is_done = self._end_one(how)
        self.endings[how] += is_done
        return is_done

    def kill_sidecar(self) -> bool:
        if not self._is_sidecar_worth_it:
            return False
        self.plant.kill_sidecar()
        self.sidecar_at_s = time.monotonic() + self.dice.choice((0.0, 0.0, 0.3, 3.0))
        return True

    @property
    def _is_sidecar_worth_it(self) -> bool:
        """It serves, and a kill costs it something: one that hits nothing proves nothing."""
        is_serving = self.plant.is_sidecar_up and not self.plant.is_sidecar_away
        return is_serving and self.plant.unacknowledged > 0 and not self._is_spared

    @property
    def _is_spared(self) -> bool:
        """What a wandb-core needs in order to come up is left alone, until one is there."""
        if time.monotonic() >= self.spared_until_s:
            return False
        if any(target.what == "wandb-core" for target in self._worth_it()):
            self.spared_until_s = 0.0
            return False
        return True

    def _worth_it(self) -> list[Target]:
        """What the sidecar has started and has something in flight, as far as can be told."""
        # One that hits nothing proves nothing; what a sampler holds nobody can tell.
        return [target for target in self.plant.targets() if self.plant.behind(target) != 0]

    def kill_all(self) -> bool:
        """The sidecar, its sinks, wandb-core and a trainer in the same moment."""
        if not self._is_sidecar_worth_it:
            return False
        targets = self.plant.targets()
        self.plant.kill_sidecar("sidecar, with all")
        self._end_one("kill")
        for target in targets:
            self.plant.kill(target)
        return True

    def kill_sink(self) -> bool:
        if self._is_spared:
            return self._kill_one("tensorboard sink")
        return self._kill_one("tensorboard sink", "wandb sink")

    def kill_core(self) -> bool:
        return self._kill_one("wandb-core")

    def kill_sampler(self) -> bool:
        return self._kill_one("sampler")

    def freeze(self) -> bool:
        """SIGSTOP, and SIGCONT up to four seconds later."""
        seconds = self.dice.uniform(0.1, 4.0)
        at_work = [slot.trainer for slot in self.slots if slot.is_at_work]
        moving = [trainer for trainer in at_work if trainer and not trainer.is_frozen]
        if self.dice.random() < 0.3 and moving:
            trainer = self.dice.choice(moving)
            self.plant.freeze_trainer(trainer, seconds)
        elif self.dice.random() < 0.3 and not self.plant.is_sidecar_away:
            self.plant.freeze_sidecar(seconds)
        elif targets := self.plant.targets():
            self.plant.freeze(self.dice.choice(targets).process, seconds)
        else:
            return False
        return True

    def stall_disk(self) -> bool:
        """No sync comes back for a while."""
        if self.plant.is_stalled or not self.plant.is_sidecar_up or self._is_spared:
            return False
        self.plant.stall_disk(self.dice.uniform(0.2, STALL_MAX_S))
        return True

    def fork_worker(self) -> bool:
        """A worker that emits beside its parent, through what it inherited."""
        at_work = [slot.trainer for slot in self.slots if slot.is_at_work]
        moving = [trainer for trainer in at_work if trainer and not trainer.is_frozen]
        if not moving:
            return False
        self.plant.order_worker(self.dice.choice(moving))
        return True

    def start_twin(self) -> bool:
        """A second job with the id of a first, for a while."""
        if len(self.twins) >= TWINS_MAX:
            return False
        slot = self.dice.choice(self.slots)
        twin = self.plant.start_trainer(slot.run_id, slot.source, slot.next_step(self.dice))
        self.twins.append((time.monotonic() + self.dice.uniform(2, 8), twin))
        return True

    def _end_twins(self, now_s: float) -> None:
        for item in [item for item in self.twins if now_s >= item[0]]:
            self.twins.remove(item)
            if item[1].is_running:
                self.plant.end_trainer(item[1], self.dice.choice(("kill", "exit")))

    def _end_one(self, how: str) -> bool:
        at_work = [slot for slot in self.slots if slot.is_at_work]
        if not at_work:
            return False
        slot = self.dice.choice(at_work)
        assert slot.trainer is not None
        self.plant.end_trainer(slot.trainer, how)
        slot.start_at_s = time.monotonic() + self.dice.choice((0.0, 0.0, 1.0))
        return True

    def _kill_one(self, *what: str) -> bool:
        targets = [target for target in self._worth_it() if target.what in what]
        if not targets:
            return False
        self.plant.kill(self.dice.choice(targets))
        return True

    def finish(self, say: Callable[[str], None]) -> list[str]:
        """Let every run end, and every sink come to the end of it; what did not."""
        say("trainers finish")
        self.plant.end_stall(everything=True)
        # Who finishes a run is the newest of it: after all twins.
        self._end_twins(NEVER_S)
        self._renew_first_ranks()
        # A fresh sidecar has no back-off left from the kills before.
        if self.plant.is_sidecar_up:
            self.plant.thaw(everything=True)
            self.plant.kill_sidecar()
        self.sidecar_at_s = 0.0

        def are_all_at_work() -> bool:
            self.keep_up()
            return all(slot.is_at_work and slot.is_acknowledged for slot in self.slots)

        wait_until(are_all_at_work, 120)
        for slot in self.slots:
            assert slot.trainer is not None
            self.plant.end_trainer(slot.trainer, "finish" if slot.source == "rank0" else "exit")
        wait_until(lambda: all(t.popen.poll() is not None for t in self.plant.trainers), 120)
        wait_until(self.plant.are_workers_done, 60)
        self.plant.bring_late_spools(0)
        deadline_s = time.monotonic() + DRAIN_S
        while (left := undone(self.plant)) and time.monotonic() < deadline_s:
            say(f"draining: {left[0]}")
            wait_until(lambda: not self.plant.is_sidecar_up or not undone(self.plant) or tick(), 10)
        if not self.plant.is_sidecar_up:
            return ["the sidecar ended by itself"]
        code = self.plant.stop_sidecar(150)
        return left + ([f"the sidecar ended with code {code}"] if code else [])

    def _renew_first_ranks(self) -> None:
        for slot in self.slots:
            if slot.source == "rank0" and slot.trainer is not None and slot.trainer.is_running:
                self.plant.end_trainer(slot.trainer, "kill")
                slot.start_at_s = 0.0


def undone(plant: Plant) -> list[str]:
    """What has not come to its end yet: spools, runs, sinks."""
    left = [f"{path.name} is still in the spool" for path in plant.spool.glob("*.spool")]
    for run_dir in plant.run_dirs():
        info = read_json(run_dir / "run.json") or {}
        if info.get("state") != "ended":
            left.append(f"{run_dir.name} has not ended")
        for sink in SINKS:
            cursor = read_json(run_dir / "cursors" / f"{sink}.json") or {}
            if not cursor.get("done") or cursor.get("ending") != info.get("endings"):
                left.append(f"{sink} is at row {cursor.get('row')} of {run_dir.name}")
    return left


def tick(every_s: float = 1.0) -> bool:
    """True, about once a second: for a line of progress."""
    return time.monotonic() % every_s < 0.02


# --- the verdict


class Loss(NamedTuple):
    """What a kill of one trainer cost. age_ms: of the oldest event that is missing."""

    count: int
    age_ms: float
    is_away: bool


@dataclass
class Verdict:
    emitted: int = 0
    acknowledged: int = 0
    journaled: int = 0
    journal_rows: int = 0
    hardware: int = 0
    gap_events: int = 0
    lost: int = 0
    doubled: int = 0
    invented: int = 0
    losses: list[Loss] = field(default_factory=list)
    shown: dict[str, Counter[Said]] = field(default_factory=dict)
    sink_counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Of each sink: lost, doubled, invented."""
    faults: list[str] = field(default_factory=list)


def judge(plant: Plant, say: Callable[[str], None]) -> Verdict:
    """Read everything that was made, and compare."""
    verdict = Verdict()
    say("reading journals")
    run_dirs = list(plant.run_dirs())
    rows_of = {path.name: oracle.read_rows(path, verdict.faults) for path in run_dirs}
    journals = oracle.read_journals(rows_of)
    verdict.faults += journals.faults
    verdict.journal_rows, verdict.hardware = journals.rows, journals.hardware
    verdict.gap_events = journals.gap_events
    for trainer in [*plant.trainers, *plant.workers()]:
        _judge_trainer(verdict, journals, trainer, plant.disturbed)
    for run_dir in run_dirs:
        verdict.faults += _wrong_words(run_dir)
    said = journals.said
    verdict.journaled = len(said)
    verdict.doubled = sum(count - 1 for count in said.values())
    for sink in SINKS:
        say(f"reading {sink}")
        _judge_sink(verdict, sink, run_dirs, rows_of, journals)
    return verdict


def _wrong_words(run_dir: Path) -> list[str]:
    """Fault 47: nothing was stepped over, however often sinks were killed; and the end is
    that of the session that finished last."""
    info = read_json(run_dir / "run.json") or {}
    end = info.get("status"), info.get("exit_code")
    wrong = [f"{path} is there" for path in run_dir.glob("cursors/*.skipped")]
    return wrong + ([] if end == ("finished", 0) else [f"{run_dir.name} has ended as {end}"])


def _judge_trainer(
    verdict: Verdict, journals: oracle.Journals, trainer: Trainer, disturbed: list[list[int]]
) -> None:
    emitted = read_side_file(trainer.side)
    numbers = journals.order.get(trainer.number, [])
    name = f"trainer {trainer.number} ({trainer.ended_by})"
    verdict.emitted += len(emitted)
    verdict.invented += len(set(numbers) - {e.number for e in emitted})
    if numbers != sorted(numbers):
        verdict.faults.append(f"{name}: out of order in the journal")
    acknowledged = max((e.acknowledged for e in emitted), default=0)
    verdict.acknowledged += max(0, acknowledged - 1)
    if journals.durable[trainer.number] < acknowledged and numbers:
        verdict.faults.append(f"{name}: {acknowledged} events were acknowledged, fewer are there")
    missing = [e for e in emitted if e.number not in set(numbers)] if emitted else []
    if not missing:
        return
    is_tail = missing[0].number == (numbers[-1] + 1 if numbers else 0)
    if trainer.ended_by not in ("kill", "os_exit") or not is_tail:
        verdict.lost += len(missing)
        verdict.faults.append(f"{name}: {len(missing)} events are lost from {missing[0]} on")
        return
    # What it still emitted before it obeyed is of its last moment.
    ended = trainer.ended_ns = max(trainer.ended_ns, emitted[-1].mono_ns)
    is_away = any(a - AWAY_MARGIN_NS < ended < b + AWAY_MARGIN_NS for a, b in disturbed)
    loss = Loss(len(missing), trainer.running_ns(missing[0].mono_ns) / 1e6, is_away)
    verdict.losses.append(loss)
    if loss.age_ms > (AWAY_MS if is_away else THERE_MS) + BUSY_MS:
        verdict.lost += loss.count
        verdict.faults.append(f"{name}: the kill cost {loss.age_ms:.0f} ms, {loss.count} events")


def _judge_sink(
    verdict: Verdict,
    sink: str,
    run_dirs: Iterable[Path],
    rows_of: dict[str, list[Row]],
    journals: oracle.Journals,
) -> None:
    said: Counter[Said] = Counter()
    for run_dir in run_dirs:
        rows = rows_of[run_dir.name]
        if sink == "tensorboard":
            shown = oracle.shown_in_tensorboard(run_dir, rows, journals.steps)
        else:
            shown = oracle.shown_in_wandb(run_dir, rows)
        said += shown.said
        verdict.faults += shown.faults
        if any(journals.run_of.get(process) != run_dir.name for process, _ in shown.said):
            verdict.faults.append(f"{sink} of {run_dir.name} has events of another run")
    expected = set(journals.said)
    lost, invented = len(expected - set(said)), len(set(said) - expected)
    doubled = sum(count - 1 for count in said.values())
    verdict.shown[sink] = said
    verdict.sink_counts[sink] = lost, doubled, invented
    if lost or doubled or invented:
        verdict.faults.append(f"{sink}: lost {lost}, doubled {doubled}, invented {invented}")


# --- what is printed


def print_verdict(console: Console, verdict: Verdict, plant: Plant, endings: Counter[str]) -> None:
    table = Table(title="events of trainers", title_justify="left")
    for name in ("", "events", "lost", "doubled", "invented"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("emitted", str(verdict.emitted))
    table.add_row("acknowledged, as their emitters knew", str(verdict.acknowledged))
    counts = verdict.lost, verdict.doubled, verdict.invented
    table.add_row("journaled", str(verdict.journaled), *map(str, counts))
    table.add_row("in a Gap", str(verdict.gap_events))
    for sink, said in verdict.shown.items():
        table.add_row(f"in {sink}", str(said.total()), *map(str, verdict.sink_counts[sink]))
    for name, is_away in (("there", False), ("away", True)):
        losses = [loss for loss in verdict.losses if loss.is_away is is_away]
        ages = _spread([loss.age_ms for loss in losses])
        text = f"gone with {len(losses)} killed trainers\n  sidecar {name}: {ages} ms"
        table.add_row(text, str(sum(loss.count for loss in losses)))
    console.print(table)
    console.print(
        f"{verdict.journal_rows} rows in journals, {verdict.hardware} of them hardware; "
        f"{len(plant.trainers)} trainers, ended by themselves: {dict(endings)}; "
        f"{plant.freezes} freezes, {plant.stalls} stalls of the disk, "
        f"{len(list(plant.workers()))} forked workers"
    )
    print_kills(console, plant.kills)


def print_kills(console: Console, kills: list[Kill]) -> None:
    table = Table(title="kills", title_justify="left")
    for name in ("killed", "times", "in flight (min/median/max)", "hit nothing"):
        table.add_column(name, justify="left" if name == "killed" else "right")
    for what in sorted({kill.what for kill in kills}):
        found = [kill.in_flight for kill in kills if kill.what == what]
        known = [count for count in found if count is not None]
        nothing = str(known.count(0)) if known else "not known"
        table.add_row(what, str(len(found)), _spread([c for c in known if c]), nothing)
    known = [kill.in_flight for kill in kills if kill.in_flight is not None]
    table.add_row("all", str(len(kills)), _spread([c for c in known if c]), str(known.count(0)))
    console.print(table)


def _spread(values: list[float] | list[int]) -> str:
    if not values:
        return "-"
    return f"{min(values):.0f}/{statistics.median(values):.0f}/{max(values):.0f}"


# --- the command


@dataclass(frozen=True)
class Options:
    minutes: float
    seed: int
    kills: int | None = None
    rate_hz: float = RATE_HZ


def run(place: Path, options: Options, console: Console) -> tuple[Verdict, list[Kill]]:
    """One chaos run in a directory, to its verdict."""
    dice = random.Random(options.seed)
    for name in ("data", "spool"):
        (place / name).mkdir()
    (place / "data" / "runs").mkdir()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, transient=True) as progress,
        Plant(place, options.rate_hz) as plant,
    ):
        task = progress.add_task("starting", total=options.minutes * 60)

        def say(text: str) -> None:
            progress.update(task, description=text)

        chaos = Chaos(plant, dice)
        began_s = time.monotonic()
        # A third of what is done is no kill, or finds nothing to kill.
        wanted = options.kills or int(options.minutes * 60)
        every_s = options.minutes * 60 / wanted
        due_s = began_s + 3
        while (now := time.monotonic()) < began_s + options.minutes * 60:
            if options.kills is not None and len(plant.kills) >= options.kills:
                break
            chaos.keep_up()
            if now >= due_s:
                done = chaos.act()
                due_s = now + (dice.uniform(0.2, 1.2) * every_s if done else 0.05)
                say(f"{len(plant.kills)} kills, {plant.freezes} freezes  {done:<14}")
                progress.update(task, completed=now - began_s)
            wait_until(lambda: tick(0.05), 1)
        undone = chaos.finish(say)
        verdict = judge(plant, say)
        verdict.faults += undone
    print_verdict(console, verdict, plant, chaos.endings)
    return verdict, plant.kills


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=2.0, help="how long things are killed")
    parser.add_argument("--seed", type=int, default=None, help="of the dice")
    parser.add_argument("--kills", type=int, default=None, help="stop after so many")
    parser.add_argument("--rate-hz", type=float, default=RATE_HZ, help="events a second, each")
    given = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    console = Console()
    console.print(f"chaos with seed {seed}, {given.minutes:g} minutes")
    place = Path(tempfile.mkdtemp(prefix="tm-chaos-", dir="/tmp"))
    options = Options(given.minutes, seed, given.kills, given.rate_hz)
    verdict, _ = run(place, options, console)
    if not verdict.faults:
        shutil.rmtree(place)
        console.print("nothing lost, nothing doubled, nothing invented")
        return 0
    for fault in verdict.faults[:50]:
        console.print(f"fault: {fault}", style="red", highlight=False)
    console.print(f"kept: {place}; again: --minutes {given.minutes:g} --seed {seed}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
