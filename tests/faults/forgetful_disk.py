"""A disk that forgets what was not synced.

In: a directory that is written to in earnest; `os.fsync` and `os.fdatasync` of it.
Out: after `power_cut`, what such a disk could be left with.
Never: keeps less than was synced, or invents a byte.

Files and names are told apart: syncing a file does not make its name durable,
syncing a directory only the names in it, be they of files or of directories.
With the name of a directory goes all below it. What was not synced since is
kept or dropped, name by name and block by block, as the dice say; a later block
may be there and an earlier one not. A file of one small block is old or new. A
directory that was renamed has one of its two names.

`calls_left` makes the process die at a system call: from then on every one
that would change something raises Died. That goes for the functions of `os` and
for files from `open`, each write of which is a call, although the file may keep it in its
buffer: a sync without a flush makes nothing durable. One process at a time.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISDIR
from typing import Any

BLOCK_BYTES = 64
_CHANGING = (
    "write",
    "pwrite",
    "fsync",
    "fdatasync",
    "replace",
    "rename",
    "unlink",
    "ftruncate",
    "truncate",
    "mkdir",
    "rmdir",
)
Tree = dict[str, "bytes | Tree"]
"""What is below a directory: the contents of files, and directories."""


class Died(BaseException):
    """The process is gone. Not an Exception: nobody may handle it."""


class ForgetfulDisk:
    """Patches `os` and `open` while it is entered. Not thread-safe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls_left: int | None = None
        """Changing calls until the process dies; None for ever."""
        self.room: int | None = None
        """Bytes that can still be written; None without end."""
        self.failing_syncs = 0
        """So many syncs fail with EIO, and make nothing durable."""
        self._real = {name: getattr(os, name) for name in _CHANGING}
        self._real_open = io.open
        # By inode: a file or directory keeps it, whatever it is called.
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._held: dict[int, int] = {}

    def __enter__(self) -> ForgetfulDisk:
        for name in _CHANGING:
            setattr(os, name, self._dying(self._real[name]))
        os.write = self._dying(lambda fd, data: self._real["write"](fd, self._fitting(data)))
        os.pwrite = self._dying(
            lambda fd, data, at: self._real["pwrite"](fd, self._fitting(data), at)
        )
        os.fsync = os.fdatasync = self._dying(self._sync)
        io.open = builtins.open = self._open  # type: ignore[assignment]
        return self

    def __exit__(self, *exc: object) -> None:
        io.open = builtins.open = self._real_open
        for name in _CHANGING:
            setattr(os, name, self._real[name])
        self._let_go()

    @property
    def held_descriptors(self) -> int:
        """Descriptors that this disk has open for itself."""
        return len(self._held)

    def power_cut(self, dice: random.Random) -> None:
        """Leave what could be left. Nobody may have a file open any more."""
        self.calls_left = self.room = None
        self.failing_syncs = 0
        left = _Survivors(self, dice).below(self.root.stat().st_ino)
        self._let_go()
        for entry in list(os.scandir(self.root)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                self._real["unlink"](entry.path)
        self._restore(self.root, left)

    def _restore(self, directory: Path, tree: Tree) -> None:
        """Write what has survived: it is on the disk."""
        for name, content in tree.items():
            path = directory / name
            if isinstance(content, bytes):
                path.write_bytes(content)
                self._contents[path.stat().st_ino] = content
            else:
                path.mkdir()
                self._restore(path, content)
        self._note_names(directory)

    def _dying(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def changing(*args: Any, **options: Any) -> Any:
            if self.calls_left is not None:
                if self.calls_left == 0:
                    raise Died
                self.calls_left -= 1
            return call(*args, **options)

        return changing

    def _open(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        opened = self._dying(self._real_open) if set(mode) & set("wax") else self._real_open
        real = opened(file, mode, *args, **options)
        return real if set(mode) <= set("rbt") else _File(self, real)

    def _fitting(self, data: bytes) -> bytes | memoryview:
        """As much of data as there is room for."""
        if self.room is None:
            return data
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fitting = memoryview(data)[: self.room]
        self.room -= len(fitting)
        return fitting

    def _sync(self, fd: int) -> None:
        if self.failing_syncs:
            self.failing_syncs -= 1
            raise OSError(errno.EIO, "Input/output error")
        status = os.fstat(fd)
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if not path.is_relative_to(self.root):
            return  # the directory in which the root is: that stays
        if S_ISDIR(status.st_mode):
            self._note_names(path)
        else:
            self._contents[status.st_ino] = _read(fd)
            self._hold(status.st_ino, fd)

    def _note_names(self, path: Path) -> None:
        names = _names_in(path)
        with _opened(path) as fd:
            self._names[os.fstat(fd).st_ino] = names
            self._hold(os.fstat(fd).st_ino, fd)
        for name, ino in names.items():
            with _opened(path / name) as fd:
                self._hold(ino, fd)

    def _hold(self, ino: int, fd: int) -> None:
        # Held open, its number goes to nothing else, and it can be read without a name.
        if ino not in self._held:
            self._held[ino] = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)

    def _let_go(self) -> None:
        for fd in self._held.values():
            os.close(fd)
        self._held, self._contents, self._names = {}, {}, {}


class _File:
    """A file from `open` whose changes are system calls of the process that may die."""

    def __init__(self, disk: ForgetfulDisk, real: Any) -> None:
        self._disk = disk
        self._real = real

    def write(self, data: Any) -> int:
        return int(self._disk._dying(self._written)(data))

    def _written(self, data: Any) -> int:
        fitting = data if isinstance(data, str) else self._disk._fitting(data)
        size: int = self._real.write(fitting)
        if len(fitting) < len(data) and not isinstance(self._real, io.RawIOBase):
            raise OSError(errno.ENOSPC, "No space left on device")
        return size

    def truncate(self, size: int | None = None) -> int:
        return int(self._disk._dying(self._real.truncate)(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exc: object) -> None:
        self._real.close()


class _Survivors:
    """One throw of the dice over everything that is or was on a disk."""

    def __init__(self, disk: ForgetfulDisk, dice: random.Random) -> None:
        self._disk = disk
        self._dice = dice
        self._now: dict[int, dict[str, int]] = {}
        self._path_of: dict[int, Path] = {}
        for directory, _, _ in os.walk(disk.root):
            names = _names_in(Path(directory))
            self._now[Path(directory).stat().st_ino] = names
            self._path_of |= {ino: Path(directory) / name for name, ino in names.items()}
        self._is_old: dict[int, bool] = {}

    def below(self, directory: int) -> Tree:
        """What is left below the directory of this inode."""
        durable, now = self._disk._names.get(directory, {}), self._now.get(directory, {})
        tree: Tree = {}
        for name in sorted(durable.keys() | now.keys()):
            ino = self._survivor(durable.get(name), now.get(name))
            if ino is not None:
                tree[name] = self.below(ino) if self._is_directory(ino) else self._content(ino)
        return tree

    def _survivor(self, durable: int | None, now: int | None) -> int | None:
        """Which of the two that had a name has it: the one that was synced, or the later."""
        is_old = self._dice.random() < 0.5
        for ino in (durable, now):
            if ino is not None and self._is_directory(ino):
                # Renamed, it has one of its names, and not both or neither.
                is_old = self._is_old.setdefault(ino, is_old)
        return durable if is_old else now

    def _is_directory(self, ino: int) -> bool:
        if ino in self._now:
            return True
        fd = self._disk._held.get(ino)
        return fd is not None and S_ISDIR(os.fstat(fd).st_mode)

    def _content(self, ino: int) -> bytes:
        path = self._path_of.get(ino)
        now = _read(self._disk._held[ino]) if path is None else path.read_bytes()
        return _mixed(self._disk._contents.get(ino, b""), now, self._dice)


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
    """The files and directories in a directory; pipes, sockets and links are no data."""
    return {
        entry.name: entry.inode()
        for entry in os.scandir(path)
        if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
    }


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
