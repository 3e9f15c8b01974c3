"""The plant of the chaos run: a sidecar with its sinks, trainers, and what breaks them.

In: what to start, to kill, to freeze.
Out: processes; and a record of each kill with what it had in flight.
Never: signals a process that it did not start, itself or through its sidecar.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from shared.ids import RUN_ID
from telemetry.datadir import holder_of, is_held
from telemetry.journal.layout import read_mark
from telemetry.json_files import read_json
from tests.faults.stalling_sidecar import STALL_FILE
from tests.faults.trainer_process import (
    HOST,
    RECORD,
    WORKER_EVENTS,
    WORKERS_FROM,
    last_emitted,
)

PR_SET_CHILD_SUBREAPER = 36
SINKS = ("tensorboard", "wandb")
NEVER_NS = 1 << 62
DESCRIPTORS_SOFT = 512
"""What the sidecar is started with; it may raise that to the hard limit."""


class Kill(NamedTuple):
    """in_flight: events unacknowledged (trainers, sidecar) or not committed (sinks); None
    where it can't be told from outside."""

    what: str
    mono_ns: int
    in_flight: int | None


class Target(NamedTuple):
    """A process that the sidecar has started."""

    what: str
    process: psutil.Process
    sink: str = ""
    run_id: str = ""


@dataclass
class Trainer:
    """One process of a trainer, from its start to its end."""

    number: int
    run_id: str
    source: str
    side: Path
    first_step: int
    popen: subprocess.Popen[bytes]
    spool: Path
    stops: list[list[int]] = field(default_factory=list)
    """When it was frozen, from and to."""
    ended_by: str = ""
    ended_ns: int = 0

    @property
    def is_running(self) -> bool:
        return not self.ended_by and self.popen.poll() is None

    @property
    def is_frozen(self) -> bool:
        return bool(self.stops) and self.stops[-1][1] == NEVER_NS

    @property
    def in_flight(self) -> int:
        last = last_emitted(self.side)
        # The acknowledged ones are counted with RunStarted.
        return 0 if last is None else max(0, last.number + 2 - last.acknowledged)

    def running_ns(self, since_ns: int) -> int:
        """How long it ran from then to its end, without the time that it was frozen."""
        frozen = sum(
            max(0, min(end, self.ended_ns) - max(begin, since_ns)) for begin, end in self.stops
        )
        return self.ended_ns - since_ns - frozen


def _adopt_orphans(is_wanted: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(is_wanted), 0, 0, 0)


class Plant:
    """Everything that runs. A context manager: at its end nothing does."""

    def __init__(self, place: Path, rate_hz: float) -> None:
        self.data_dir = place / "data"
        self.spool = place / "spool"
        self.kills: list[Kill] = []
        self.freezes = 0
        self.trainers: list[Trainer] = []
        self.disturbed: list[list[int]] = []
        """When the sidecar was not there, or did not answer."""
        self.stalls = 0
        self._stall_file = place / "stalled"
        self._stalled_until_s = 0.0
        self._late_spools = place / "late"
        self._sides = place / "emitted"
        self._sides.mkdir()
        self._log = place / "sidecar.log"
        self._rate_hz = rate_hz
        self._sidecar: subprocess.Popen[bytes] | None = None
        self._frozen: list[tuple[float, psutil.Process, Trainer | None]] = []
        self._frozen_sidecar_pid = -1
        # What a killed sink leaves behind becomes our child, and is found at the end.
        _adopt_orphans(True)

    def __enter__(self) -> Plant:
        return self

    def __exit__(self, *exc: object) -> None:
        for trainer in self.trainers:
            if trainer.popen.poll() is None:
                trainer.popen.kill()
            trainer.popen.wait()
            assert trainer.popen.stdin is not None
            with contextlib.suppress(OSError):
                trainer.popen.stdin.close()
        if self._sidecar is not None:
            self._sidecar.kill()
            self._sidecar.wait()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.reap()
        # Else a wandb-core that a later test leaves behind would be ours, too.
        _adopt_orphans(False)

    # --- the sidecar

    @property
    def _sidecar_pid(self) -> int:
        return -1 if self._sidecar is None else self._sidecar.pid

    @property
    def is_sidecar_up(self) -> bool:
        return self._sidecar is not None and self._sidecar.poll() is None

    def start_sidecar(self) -> None:
        command = [sys.executable, "-m", "tests.faults.stalling_sidecar", "serve"]
        command += ["--data-dir", str(self.data_dir)]
        command += ["--sinks", ",".join(SINKS), "--sample-hz", "10", "--no-host-run"]
        command += ["--http", "off", "--page", "off", "--drain-grace-s", "120"]
        command += ["--spool-dir", str(self.spool)]
        command += ["--sink-timeout-s", "30", "--host", HOST]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TELEMETRY_", "WANDB_"))}
        kept[STALL_FILE] = str(self._stall_file)
        with self._log.open("ab") as log:
            self._sidecar = subprocess.Popen(
                command, env=kept, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=_with_few_descriptors,
            )  # fmt: skip

    def stall_disk(self, seconds: float) -> None:
        """No sync of the sidecar comes back before so many seconds have passed."""
        if not self.is_sidecar_away:
            self.disturbed.append([time.monotonic_ns(), NEVER_NS])
        self._stall_file.touch()
        self._stalled_until_s = time.monotonic() + seconds
        self.stalls += 1

    @property
    def is_stalled(self) -> bool:
        return self._stall_file.exists()

    def end_stall(self, everything: bool = False) -> None:
        """Let the disk go on where it is due."""
        if self.is_stalled and (everything or time.monotonic() >= self._stalled_until_s):
            self._stall_file.unlink()

    @property
    def unacknowledged(self) -> int:
        """Events that trainers which are there have emitted, and that no sidecar acknowledged."""
        return sum(trainer.in_flight for trainer in self.trainers if trainer.is_running)

    def freeze_sidecar(self, seconds: float) -> None:
        if (sidecar := self.sidecar) is not None:
            self.disturbed.append([time.monotonic_ns(), NEVER_NS])
            self._frozen_sidecar_pid = sidecar.pid
            self.freeze(sidecar, seconds)

    def kill_sidecar(self, what: str = "sidecar") -> None:
        """kill -9, whatever it is doing. It counts as away until `note_sidecar_is_back`."""
        assert self._sidecar is not None
        if not self.is_sidecar_away:
            self.disturbed.append([time.monotonic_ns(), NEVER_NS])
        self.kills.append(Kill(what, time.monotonic_ns(), self.unacknowledged))
        self._sidecar.kill()
        self._sidecar.wait()

    @property
    def is_sidecar_away(self) -> bool:
        return bool(self.disturbed) and self.disturbed[-1][1] == NEVER_NS

    def note_sidecar_is_back(self) -> None:
        """Call now and then: whether it serves is seen by who holds its directory."""
        frozen = {process.pid for _, process, _ in self._frozen}
        if not self.is_sidecar_away or self._frozen_sidecar_pid in frozen or self.is_stalled:
            return
        pid, address = holder_of(self.data_dir)
        if is_held(self.data_dir) and address and pid == str(self._sidecar_pid):
            self.disturbed[-1][1] = time.monotonic_ns()

    def stop_sidecar(self, timeout_s: float) -> int:
        """SIGTERM; the exit code."""
        assert self._sidecar is not None
        self._sidecar.terminate()
        return self._sidecar.wait(timeout_s)

    @property
    def sidecar(self) -> psutil.Process | None:
        """The process that serves: the only child of its guard, which was started here."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._sidecar is not None and self.is_sidecar_up:
                return next(iter(psutil.Process(self._sidecar.pid).children()), None)
        return None

    def targets(self) -> list[Target]:
        """What the sidecar has started, by what it is."""
        sidecar = self.sidecar
        found: list[Target] = []
        for process in sidecar.children(recursive=True) if sidecar else []:
            with contextlib.suppress(psutil.Error):
                found += _target(process)
        return found

    def kill(self, target: Target) -> None:
        self.kills.append(Kill(target.what, time.monotonic_ns(), self.behind(target)))
        with contextlib.suppress(psutil.NoSuchProcess):
            target.process.kill()

    def freeze(
        self, process: psutil.Process, seconds: float, trainer: Trainer | None = None
    ) -> None:
        """SIGSTOP now, SIGCONT after so many seconds."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
            self._frozen.append((time.monotonic() + seconds, process, trainer))
            self.freezes += 1

    def thaw(self, everything: bool = False) -> None:
        """SIGCONT where it is due."""
        for item in list(self._frozen):
            if everything or time.monotonic() >= item[0]:
                self._frozen.remove(item)
                with contextlib.suppress(psutil.NoSuchProcess):
                    item[1].resume()
                if item[2] is not None:
                    item[2].stops[-1][1] = time.monotonic_ns()
                if item[1].pid == self._frozen_sidecar_pid and not self.is_stalled:
                    self.disturbed[-1][1] = time.monotonic_ns()

    def behind(self, target: Target) -> int | None:
        """Rows that are on disk and that the sink has not committed."""
        if not target.run_id:
            return None
        run_dir = self.data_dir / "runs" / target.run_id
        mark = read_mark(run_dir / "journal")
        cursor = read_json(run_dir / "cursors" / f"{target.sink}.json") or {}
        return 0 if mark is None else max(0, mark.next_row - int(cursor.get("row", 0)))

    # --- trainers

    def start_trainer(
        self, run_id: str, source: str, first_step: int, *, is_late: bool = False
    ) -> Trainer:
        """is_late: what it leaves in its spool is found when others have gone on."""
        number = len(self.trainers)
        spool = self._late_spools / str(number) if is_late else self.spool
        side = self._sides / f"{number:05d}"
        command = [sys.executable, "-m", "tests.faults.trainer_process"]
        command += ["--endpoint", f"ipc://{self.data_dir}/telemetry.sock"]
        command += ["--spool", str(spool), "--run", run_id, "--source", source]
        command += ["--process", str(number), "--side", str(side), "--step", str(first_step)]
        command += ["--rate-hz", str(self._rate_hz)]
        popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        trainer = Trainer(number, run_id, source, side, first_step, popen, spool)
        self.trainers.append(trainer)
        return trainer

    def order_worker(self, trainer: Trainer) -> None:
        """Have it fork a worker, which ends by itself."""
        assert trainer.popen.stdin is not None
        with contextlib.suppress(OSError):
            trainer.popen.stdin.write(b"fork\n")
            trainer.popen.stdin.flush()

    def workers(self) -> Iterator[Trainer]:
        """What forked workers have left, in the form of those that were not forked."""
        for trainer in self.trainers:
            for side in sorted(self._sides.glob(f"{trainer.side.name}.*")):
                number = int(side.suffix[1:])
                assert number % WORKERS_FROM == trainer.number
                source = f"{trainer.source}.worker"
                yield Trainer(
                    number, trainer.run_id, source, side, 0, trainer.popen, trainer.spool,
                    ended_by="exit",
                )  # fmt: skip

    def are_workers_done(self) -> bool:
        """Every worker has emitted all that it will."""
        return all(
            side.stat().st_size >= WORKER_EVENTS * RECORD.size for side in self._sides.glob("*.*")
        )

    def bring_late_spools(self, after_s: float) -> None:
        """Move what trainers left that are gone for so long to where it is taken in."""
        for trainer in self.trainers:
            age_s = (time.monotonic_ns() - trainer.ended_ns) / 1e9
            if trainer.popen.poll() is not None and trainer.ended_ns and age_s >= after_s:
                for path in trainer.spool.glob("*.spool") if trainer.spool != self.spool else ():
                    path.rename(self.spool / path.name)

    def freeze_trainer(self, trainer: Trainer, seconds: float) -> None:
        trainer.stops.append([time.monotonic_ns(), NEVER_NS])
        self.freeze(psutil.Process(trainer.popen.pid), seconds, trainer)

    def end_trainer(self, trainer: Trainer, how: str) -> None:
        """`kill`: -9, at once. Else an order, which it obeys in its own time."""
        if how in ("kill", "os_exit"):
            self.kills.append(Kill(f"trainer {how}", time.monotonic_ns(), trainer.in_flight))
        trainer.ended_ns = time.monotonic_ns()
        if how == "kill":
            trainer.popen.kill()
            trainer.popen.wait()
        else:
            assert trainer.popen.stdin is not None
            with contextlib.suppress(OSError):
                trainer.popen.stdin.write(how.encode() + b"\n")
                trainer.popen.stdin.flush()
        trainer.ended_by = how

    def reap(self) -> None:
        """Take leave of what was left to us."""
        own = {trainer.popen.pid for trainer in self.trainers}
        if self._sidecar is not None:
            own.add(self._sidecar.pid)
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(child.pid, os.WNOHANG)

    def run_dirs(self) -> Iterator[Path]:
        for path in sorted((self.data_dir / "runs").iterdir()):
            if RUN_ID.fullmatch(path.name):
                yield path


def _with_few_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS_SOFT, hard))


def _target(process: psutil.Process) -> list[Target]:
    words = process.cmdline()
    if "telemetry.hardware.sampler" in words:
        return [Target("sampler", process)]
    if any(Path(word).name == "wandb-core" for word in words[:2]):
        parent = process.parent()
        above = [] if parent is None else _target(parent)
        return [Target("wandb-core", process, s.sink, s.run_id) for s in above]
    if "sink" in words:
        at = words.index("sink")
        return [Target(f"{words[at + 1]} sink", process, words[at + 1], Path(words[at + 2]).name)]
    return []
