"""Processes: those of this machine as they are now, with their use of CPU and memory.

In: /proc, and the pids of the training processes that runs have named.
Out: one line for each process, for the screen.
Never: recorded: a run keeps its own processes only, and these come and go by the thousand.

Not thread-safe: the thread that polls the journals reads them.
"""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.redact import redacted
from telemetry.hardware import proc
from telemetry.hardware.rates import CounterRate

READ_MAX: Final = 8_192
"""Processes that are read at most."""
COMMAND_MAX_BYTES: Final = 4_096


@dataclass(frozen=True)
class ProcessLine:
    """One process. cpu_cores: None at its first reading. of: the training process above it."""

    pid: int
    user: str
    cpu_cores: float | None
    rss_bytes: int
    threads: int
    command: str
    of: str = ""


class Processes:
    """The processes of this machine, read again and again."""

    def __init__(
        self, root: Path = Path("/proc"), clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._root, self._clock_ns = root, clock_ns
        self._rates: dict[tuple[int, int], CounterRate] = {}
        self._commands: dict[tuple[int, int], tuple[str, str]] = {}
        """User and command of each process, which are read once."""

    def read(self, trainers: Mapping[int, str]) -> tuple[ProcessLine, ...]:
        """Return the processes of now. trainers: names of the training processes, by pid."""
        now_ns = self._clock_ns()
        pids = sorted(proc.pids(self._root))[:READ_MAX]
        stats = {pid: stat for pid in pids if (stat := proc.stat_of(self._root, pid)) is not None}
        keys = {pid: (pid, stat.start_ticks) for pid, stat in stats.items()}
        present = set(keys.values())
        self._rates = {key: rate for key, rate in self._rates.items() if key in present}
        self._commands = {key: told for key, told in self._commands.items() if key in present}
        lines = []
        for pid, stat in stats.items():
            rate = self._rates.setdefault(keys[pid], CounterRate())
            user, command = self._told_of(keys[pid], stat)
            line = ProcessLine(
                pid=pid,
                user=user,
                cpu_cores=rate.update(stat.cpu_s, now_ns),
                rss_bytes=stat.rss_bytes,
                threads=stat.threads,
                command=command,
                of=_trainer_above(pid, stats, trainers),
            )
            lines.append(line)
        return tuple(lines)

    def _told_of(self, key: tuple[int, int], stat: proc.Stat) -> tuple[str, str]:
        if key not in self._commands:
            directory = self._root / str(key[0])
            self._commands[key] = _user_of(directory), _command_of(directory, stat.name)
        return self._commands[key]


def _trainer_above(pid: int, stats: Mapping[int, proc.Stat], trainers: Mapping[int, str]) -> str:
    """Return the name of the training process that this one is, or descends from, or ""."""
    seen = set[int]()
    while trainers and pid in stats and pid not in seen:
        if pid in trainers:
            return trainers[pid]
        seen.add(pid)
        pid = stats[pid].parent
    return ""


def _user_of(directory: Path) -> str:
    try:
        uid = directory.stat().st_uid
    except OSError:  # it has ended
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a user of a container
        return str(uid)


def _command_of(directory: Path, name: str) -> str:
    """Return the command line without secrets, or as `ps` does the name in brackets."""
    try:
        with (directory / "cmdline").open("rb") as file:
            words = file.read(COMMAND_MAX_BYTES).split(b"\0")
    except OSError:  # it has ended
        words = []
    # Others may read a password over the shoulder.
    shown = redacted([word.decode("utf-8", "replace") for word in words if word])
    return " ".join(map(str, shown)) or f"[{name}]"
