"""Offline fragments: the `.wandb` files of one run, and the rows that are in them.

In: the directory that wandb writes to, and the run's id.
Out: which rows its files hold, each file's in order; how far the newest has got.
Never: changes or removes a fragment. A later one goes on where the last ends.

wandb names a fragment by the second in which it began, local time, so names
order neither across a clock set back nor in a shared second: rows do.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shared.clock import Clock
from telemetry.sinks.base import SinkUnavailable
from telemetry.sinks.wandb.wandb_file import DamagedFile, RecordTail, history_steps

_FRAGMENT = re.compile(r"offline-run-\d{8}_\d{6}-.+")
WRITER_GONE_S = 5.0
WRITTEN_S = 10.0


class Ledger(msgspec.Struct, frozen=True):
    """A fingerprint of an ascending list of row numbers."""

    count: int = 0
    crc: int = 0

    def plus(self, rows: Iterable[int]) -> Ledger:
        """The ledger of the list with these rows behind it."""
        count, crc = self.count, self.crc
        for row in rows:
            count, crc = count + 1, zlib.crc32(struct.pack("<q", row), crc)
        return Ledger(count, crc)

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "crc": self.crc}


class Fragment(NamedTuple):
    """One `.wandb` file and the rows in it, ascending."""

    path: Path
    rows: array[int]


def fragment_paths(wandb_dir: Path, run_id: str) -> list[Path]:
    """The `.wandb` files of a run's offline fragments, by name."""
    files = wandb_dir.glob(f"offline-run-*/run-{run_id}.wandb")
    # The file's name tells the run: in a directory's, `a-b` could be run `a` or run `b`.
    return sorted(path for path in files if _FRAGMENT.fullmatch(path.parent.name))


def read_fragments(wandb_dir: Path, run_id: str) -> list[Fragment]:
    """The fragments of a run in the order of their rows; those without rows last."""
    found = [
        Fragment(path, array("q", history_steps(path)))
        for path in fragment_paths(wandb_dir, run_id)
    ]
    return sorted(found, key=lambda f: (not f.rows, f.rows[0] if f.rows else 0, f.path))


def rows_of(fragments: Iterable[Fragment]) -> Iterator[int]:
    for fragment in fragments:
        yield from fragment.rows


def last_row(fragments: Iterable[Fragment]) -> int:
    """The last row in any fragment, -1 without one."""
    return max((fragment.rows[-1] for fragment in fragments if fragment.rows), default=-1)


def writers_of(paths: Iterable[Path], proc: Path = Path("/proc")) -> list[int]:
    """Other processes that hold one of these files open, where the system can tell."""
    wanted = {str(path.resolve()) for path in paths}
    holders = []
    for fd_dir in proc.glob("[0-9]*/fd"):
        pid = int(fd_dir.parent.name)
        if pid != os.getpid() and not wanted.isdisjoint(_open_files(fd_dir)):
            holders.append(pid)
    return holders


def wait_for_writers(
    paths: list[Path],
    clock: Clock,
    pause: Callable[[float], None],
    writers: Callable[[Iterable[Path]], list[int]] = writers_of,
) -> None:
    """Wait until the wandb-core of a killed sink has let go of its file.

    It follows its parent within 0.1 s. One that is stopped doesn't, and could
    still write rows behind those that are read back now.

    Raises:
        SinkUnavailable: a file still has a writer after 5 s.
    """
    if not paths:
        return
    deadline_ns = clock.monotonic_ns() + int(WRITER_GONE_S * 1e9)
    while pids := writers(paths):
        if clock.monotonic_ns() >= deadline_ns:
            raise SinkUnavailable(f"an earlier wandb-core still has the run's file open: {pids}")
        pause(0.1)


class Confirmation:
    """What of the rows sent to one fragment has been read back from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.row = -1
        self.is_ended = False
        self._tail = RecordTail(path)
        self._sent: deque[int] = deque()

    def sent(self, row: int) -> None:
        """A row has been handed to wandb."""
        self._sent.append(row)

    def read_back(self) -> int:
        """The last row that is in the file and on the disk; -1 before the first.

        Raises:
            SinkUnavailable: the file is damaged, or holds something else than was sent.
        """
        found = self.row
        try:
            for record in self._tail.read():
                if record.HasField("history"):
                    found = self._expect(record.history.step.num)
                self.is_ended |= record.HasField("exit")
        except DamagedFile as exc:
            raise SinkUnavailable(f"wandb wrote a damaged file, {self.path.name}: {exc}") from exc
        if found != self.row:
            # What was read may still be in memory only. After this it isn't.
            sync_file(self.path)
            self.row = found
        return self.row

    def wait_for_end(self, clock: Clock, pause: Callable[[float], None]) -> None:
        """Wait until a finished run's last record is in the file, and all rows before it.

        wandb's finish returns before wandb-core has written the file to its end.

        Raises:
            SinkUnavailable: it is not there after 10 s, or rows are missing.
        """
        deadline_ns = clock.monotonic_ns() + int(WRITTEN_S * 1e9)
        self.read_back()
        while not self.is_ended:
            if clock.monotonic_ns() >= deadline_ns:
                raise SinkUnavailable(f"{self.path} was not written to its end")
            pause(0.01)
            self.read_back()
        if self._sent:
            raise SinkUnavailable(f"{len(self._sent)} rows are missing in {self.path}")
        sync_file(self.path)

    def _expect(self, row: int) -> int:
        if not self._sent or self._sent[0] != row:
            expected = self._sent[0] if self._sent else "none"
            raise SinkUnavailable(f"{self.path.name} holds row {row} where {expected} was sent")
        return self._sent.popleft()


def sync_file(path: Path) -> None:
    """Sync a file that another process writes, and the directories that lead to it.

    Raises:
        SinkUnavailable: the disk refuses.
    """
    try:
        for target in (path, path.parent, path.parent.parent):
            fd = os.open(target, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    except OSError as exc:
        raise SinkUnavailable(f"{path}: can't be synced: {exc}") from exc


def _open_files(fd_dir: Path) -> Iterator[str]:
    try:
        links = list(os.scandir(fd_dir))
    except OSError:  # gone, or another user's
        return
    for link in links:
        try:
            yield str(Path(link.path).readlink())
        except OSError:
            continue
