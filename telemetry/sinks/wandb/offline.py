"""Offline fragments: the `.wandb` files of one run, and the rows that are in them.

In: the directory that wandb writes to, and the run's id.
Out: the rows in its files, ascending in each; the rows confirmed in the newest file.
Never: removes a fragment, or cuts bytes without saving them beside it. A later
fragment continues where the last one ends.

wandb names a fragment by the second of local time in which it began. Names are in no
reliable order if a clock was set back or two began in one second, so fragments are
ordered by their rows.
"""

from __future__ import annotations

import json
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
from shared.files import cut, sync_directory, sync_file, write_atomically
from telemetry.sinks.base import SinkUnavailable
from telemetry.sinks.wandb.limits import LIMITS
from telemetry.sinks.wandb.run_identity import JOURNAL
from telemetry.sinks.wandb.wandb_file import HEADER, DamagedFile, RecordTail

_FRAGMENT = re.compile(r"offline-run-\d{8}_\d{6}-.+")
_ONLINE = re.compile(r"run-\d{8}_\d{6}-(.+)")
SUPERSEDED = "superseded-"
PULSE_RECORDS = 10_000
WRITER_GONE_S = 5.0


class Ledger(msgspec.Struct, frozen=True):
    """A fingerprint of an ascending list of row numbers."""

    count: int = 0
    crc: int = 0

    def plus(self, rows: Iterable[int]) -> Ledger:
        """Return the ledger of the list with these rows appended."""
        count, crc = self.count, self.crc
        for row in rows:
            count, crc = count + 1, zlib.crc32(struct.pack("<q", row), crc)
        return Ledger(count, crc)

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "crc": self.crc}


class Fragment(NamedTuple):
    """One `.wandb` file, its rows, ascending, and the offset behind its last whole record.

    names_run: the file has the record that names its run; `wandb sync` fails without it.
    journal: uuid of the journal that its rows came from; empty if the file has none.
    """

    path: Path
    rows: array[int]
    end: int = 0
    names_run: bool = True
    journal: str = ""


def fragment_paths(wandb_dir: Path, run_id: str) -> list[Path]:
    """Return the `.wandb` files of a run's offline fragments, sorted by name."""
    files = wandb_dir.glob(f"offline-run-*/run-{run_id}.wandb")
    # Match the name of the file: a directory `...-a-b` could be of run `a-b` or `b`.
    return sorted(path for path in files if _FRAGMENT.fullmatch(path.parent.name))


def online_files(wandb_dir: Path, run_id: str) -> list[Path]:
    """Return the files that a wandb-core holds open while it sends this run to a server."""
    found = (path for path in wandb_dir.glob("run-*") if _ONLINE.fullmatch(path.name))
    own = [path for path in found if path.name.split("-", 2)[2] == run_id]
    return [path / "logs" / "debug-internal.log" for path in own]


def read_fragments(
    wandb_dir: Path, run_id: str, pulse: Callable[[], object] = bool
) -> list[Fragment]:
    """Return the fragments of a run in the order of their rows; those without rows last.

    pulse: called now and then, because large files take longer than a supervisor waits.
    """
    found = [_read_fragment(path, pulse) for path in fragment_paths(wandb_dir, run_id)]
    return sorted(found, key=lambda f: (not f.rows, f.rows[0] if f.rows else 0, f.path))


def _read_fragment(path: Path, pulse: Callable[[], object]) -> Fragment:
    rows, tail, names_run, journal = array("q"), RecordTail(path), False, ""
    try:
        for number, record in enumerate(tail.read()):
            if record.HasField("history"):
                rows.append(record.history.step.num)
            if record.HasField("run"):
                names_run, journal = True, journal or _journal_of(record.run)
            if number % PULSE_RECORDS == 0:
                pulse()
    except DamagedFile:
        pass  # `wandb sync` can't read past the damage either
    return Fragment(path, rows, tail.offset, names_run, journal)


def _journal_of(run: Any) -> str:
    named = (item for item in run.config.update if item.key == JOURNAL)
    return next((str(json.loads(item.value_json)) for item in named), "")


def cut_torn(fragment: Fragment) -> None:
    """Cut a partly written last record, after saving it beside the file.

    `wandb sync` uploads a torn file, reports a failure and sets no `.synced` mark: a
    second sync would double every row. No process may be writing the file.

    Raises:
        SinkUnavailable: the disk refuses.
    """
    path = fragment.path
    try:
        if fragment.end < len(HEADER) or path.stat().st_size <= fragment.end:
            return
        beside = path.with_suffix(f".torn-at-{fragment.end}")
        with path.open("r+b") as file:
            file.seek(fragment.end)
            write_atomically(beside, file.read())
            cut(file.fileno(), fragment.end)
    except OSError as exc:
        raise SinkUnavailable(f"{path}: its torn end can't be cut: {exc}") from exc


def supersede(wandb_dir: Path, run_id: str) -> int:
    """Rename a run's fragments so that `wandb sync` ignores them; return their number.

    Raises:
        SinkUnavailable: the disk refuses.
    """
    try:
        for path in fragment_paths(wandb_dir, run_id):
            path.parent.rename(path.parent.with_name(SUPERSEDED + path.parent.name))
        if wandb_dir.is_dir():
            sync_directory(wandb_dir)
    except OSError as exc:
        raise SinkUnavailable(f"{wandb_dir}: fragments can't be moved: {exc}") from exc
    return superseded_count(wandb_dir, run_id)


def superseded_count(wandb_dir: Path, run_id: str) -> int:
    return len(list(wandb_dir.glob(f"{SUPERSEDED}offline-run-*/run-{run_id}.wandb")))


def rows_of(fragments: Iterable[Fragment]) -> Iterator[int]:
    for fragment in fragments:
        yield from fragment.rows


def first_row(fragments: Iterable[Fragment]) -> int:
    """Return the first row in any fragment; without rows, a number above every row."""
    return min((fragment.rows[0] for fragment in fragments if fragment.rows), default=1 << 62)


def last_row(fragments: Iterable[Fragment]) -> int:
    """Return the last row in any fragment; -1 without rows."""
    return max((fragment.rows[-1] for fragment in fragments if fragment.rows), default=-1)


def writers_of(paths: Iterable[Path], proc: Path = Path("/proc")) -> list[int]:
    """Return the pids of other processes that hold one of these files open, if /proc tells."""
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
    pause: Callable[[float], object],
    writers: Callable[[Iterable[Path]], list[int]] = writers_of,
) -> None:
    """Wait until the wandb-core of a killed sink has closed its file.

    It ends within 0.1 s after its parent. A stopped one does not, and could still write
    rows after the file was read.

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
    """Compares the rows sent to one fragment with the rows read back from its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.row = -1
        self.is_ended = False
        self._tail = RecordTail(path)
        self._sent: deque[int] = deque()

    def sent(self, row: int) -> None:
        """Record that a row has been handed to wandb."""
        self._sent.append(row)

    def read_back(self) -> int:
        """Return the last row that is in the file and synced; -1 before the first.

        Raises:
            SinkUnavailable: the file is damaged, or holds other rows than were sent.
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
            # The bytes read may still be in the page cache only.
            sync_with_directories(self.path)
            self.row = found
        return self.row

    def wait_for_end(
        self,
        clock: Clock,
        pause: Callable[[float], object],
        limit_s: float = LIMITS.written_s,
    ) -> None:
        """Wait until a finished run's last record is in the file, and all rows before it.

        wandb's finish returns before wandb-core has written the file to its end.

        Raises:
            SinkUnavailable: the record is not there after limit_s, or rows are missing.
        """
        deadline_ns = clock.monotonic_ns() + int(limit_s * 1e9)
        self.read_back()
        while not self.is_ended:
            if clock.monotonic_ns() >= deadline_ns:
                raise SinkUnavailable(f"{self.path} was not written to its end")
            pause(0.01)
            self.read_back()
        if self._sent:
            raise SinkUnavailable(f"{len(self._sent)} rows are missing in {self.path}")
        sync_with_directories(self.path)

    def _expect(self, row: int) -> int:
        if not self._sent or self._sent[0] != row:
            expected = self._sent[0] if self._sent else "none"
            raise SinkUnavailable(f"{self.path.name} holds row {row} where {expected} was sent")
        return self._sent.popleft()


def sync_with_directories(path: Path) -> None:
    """Sync a file that another process writes, and the directories that lead to it.

    Raises:
        SinkUnavailable: the disk refuses.
    """
    try:
        sync_file(path)
        for directory in path.parents[:2]:
            sync_directory(directory)
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
