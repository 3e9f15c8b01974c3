"""A disk that forgets what was not synced.

In: a directory that is written to in earnest; `os.fsync` and `os.fdatasync` of it.
Out: after `power_cut`, what such a disk could be left with.
Never: keeps less than was synced, or invents a byte.

Files and names are told apart: syncing a file does not make its name durable,
syncing a directory only its names. What was not synced since is kept or
dropped, name by name and block by block, as the dice say; a later block may be
there and an earlier one not. A file of one small block is old or new.

`calls_left` makes the process die at a system call: from then on every one
that would change something raises Died. One process at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISDIR
from typing import Any

BLOCK_BYTES = 64
_CHANGING = (
    "pwrite",
    "fsync",
    "fdatasync",
    "replace",
    "rename",
    "unlink",
    "ftruncate",
    "truncate",
    "mkdir",
)


class Died(BaseException):
    """The process is gone. Not an Exception: nobody may handle it."""


class ForgetfulDisk:
    """Patches `os` while it is entered. Not thread-safe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls_left: int | None = None
        """Changing calls until the process dies; None for ever."""
        self.room: int | None = None
        """Bytes that can still be written by pwrite; None without end."""
        self.failing_syncs = 0
        """So many syncs fail with EIO, and make nothing durable."""
        self._real = {name: getattr(os, name) for name in _CHANGING}
        self._contents: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        self._held: dict[int, int] = {}

    def __enter__(self) -> ForgetfulDisk:
        for name in _CHANGING:
            setattr(os, name, self._dying(self._real[name]))
        os.pwrite = self._dying(self._pwrite)
        os.fsync = self._dying(lambda fd: self._sync("fsync", fd))
        os.fdatasync = self._dying(lambda fd: self._sync("fdatasync", fd))
        return self

    def __exit__(self, *exc: object) -> None:
        for name in _CHANGING:
            setattr(os, name, self._real[name])
        self._let_go()

    def power_cut(self, dice: random.Random) -> None:
        """Leave what could be left. Nobody may have a file open any more."""
        self.calls_left = self.room = None
        self.failing_syncs = 0
        left = {path: self._survivors(path, dice) for path in self._directories()}
        self._let_go()
        for path, files in left.items():
            for name in _names_in(path):
                self._real["unlink"](path / name)
            for name, content in files.items():
                (path / name).write_bytes(content)
        # What has survived is on the disk.
        for path, files in left.items():
            self._note_names(path)
            self._contents |= {
                ino: files[name] for name, ino in self._names[path].items() if name in files
            }

    def _survivors(self, path: Path, dice: random.Random) -> dict[str, bytes]:
        durable, now = self._names.get(path, {}), _names_in(path)
        files = {}
        for name in sorted(durable.keys() | now.keys()):
            of = dice.choice((durable, now))
            if name in of:
                ino = of[name]
                files[name] = _mixed(self._contents.get(ino, b""), self._now(path, ino), dice)
        return files

    def _now(self, path: Path, ino: int) -> bytes:
        for name, number in _names_in(path).items():
            if number == ino:
                return (path / name).read_bytes()
        return _read(self._held[ino])

    def _directories(self) -> list[Path]:
        return [Path(path) for path, _, _ in os.walk(self.root)]

    def _dying(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def changing(*args: Any, **options: Any) -> Any:
            if self.calls_left is not None:
                if self.calls_left == 0:
                    raise Died
                self.calls_left -= 1
            return call(*args, **options)

        return changing

    def _pwrite(self, fd: int, data: bytes, at: int) -> int:
        if self.room is not None:
            if self.room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            data = memoryview(data)[: self.room]
            self.room -= len(data)
        written: int = self._real["pwrite"](fd, data, at)
        return written

    def _sync(self, how: str, fd: int) -> None:
        if self.failing_syncs:
            self.failing_syncs -= 1
            raise OSError(errno.EIO, "Input/output error")
        status = os.fstat(fd)
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if S_ISDIR(status.st_mode):
            self._note_names(path)
        else:
            self._contents[status.st_ino] = _read(fd)
            self._hold(status.st_ino, fd)

    def _note_names(self, path: Path) -> None:
        self._names[path] = _names_in(path)
        for name, ino in self._names[path].items():
            with _opened(path / name) as fd:
                self._hold(ino, fd)

    def _hold(self, ino: int, fd: int) -> None:
        # Held open, its number goes to no other file, and it can be read without a name.
        if ino not in self._held:
            self._held[ino] = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)

    def _let_go(self) -> None:
        for fd in self._held.values():
            os.close(fd)
        self._held, self._contents, self._names = {}, {}, {}


def _mixed(durable: bytes, now: bytes, dice: random.Random) -> bytes:
    """Something between what is on disk and what was written since."""
    how = dice.choice(("old", "new", "cut", "blocks"))
    if durable == now or how == "new":
        return now
    if how == "old" or max(len(durable), len(now)) <= BLOCK_BYTES:
        return durable
    if how == "cut" and now.startswith(durable):
        return now[: dice.randint(len(durable), len(now))]
    size = dice.choice((len(durable), len(now)))
    old = durable.ljust(size, b"\0")
    new = now.ljust(size, b"\0")
    blocks = range(0, size, BLOCK_BYTES)
    return b"".join(dice.choice((old, new))[at : at + BLOCK_BYTES] for at in blocks)[:size]


def _names_in(path: Path) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(path) if entry.is_file()}


def _read(fd: int) -> bytes:
    with _opened(Path(f"/proc/self/fd/{fd}")) as own:
        return os.pread(own, os.fstat(own).st_size, 0)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
