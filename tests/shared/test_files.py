"""Files: whole or as before, durable by name, locked by one."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from pathlib import Path

import pytest

from shared.files import (
    Locked,
    LocksUnsupported,
    is_locked,
    lock,
    make_directory,
    write_all,
    write_atomically,
    write_directory_atomically,
)
from tests.faults.forgetful_disk import ForgetfulDisk


def test_a_write_that_the_system_cuts_short_goes_on(tmp_path: Path, monkeypatch) -> None:
    """pwrite may take less than it was given."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data)[:3], at))
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)

    write_all(fd, b"ten bytes!", 2)

    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"\0\0ten bytes!"


@pytest.mark.parametrize("seed", range(20))
def test_what_was_written_is_there_after_a_power_cut(tmp_path: Path, seed: int) -> None:
    """Content and name: the file, and each directory above it that was made for it."""
    root = tmp_path / "disk"
    root.mkdir()
    with ForgetfulDisk(root) as disk:
        (root / "f").write_bytes(b"old")
        write_atomically(root / "f", b"new" * 100)
        disk.power_cut(random.Random(seed))

        assert (root / "f").read_bytes() == b"new" * 100


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    """Whatever the writer raises is the caller's to see."""
    (tmp_path / "f").write_bytes(b"old")

    def fail(file) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        write_atomically(tmp_path / "f", fail)

    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_directory_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """A failure in the middle of filling leaves the old one; success leaves nothing beside."""
    target = tmp_path / "d"
    write_directory_atomically(target, lambda d: (d / "a").write_text("1"))

    def fail(directory: Path) -> None:
        (directory / "a").write_text("2")
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        write_directory_atomically(target, fail)
    assert (target / "a").read_text() == "1"

    write_directory_atomically(target, lambda d: (d / "b").write_text("3"))
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_every_new_name_on_the_way_to_a_directory_is_synced(tmp_path: Path, monkeypatch) -> None:
    """The parents that were made hold names, too."""
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)

    make_directory(tmp_path / "a" / "b" / "c")

    assert synced == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]


def test_a_lock_is_held_by_one_and_seen_by_all(tmp_path: Path) -> None:
    """It is free again when the descriptor is closed, and asking does not take it."""
    path = tmp_path / "lock"
    first, second = (os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert not is_locked(path)

    lock(first)

    assert is_locked(path)
    with pytest.raises(Locked):
        lock(second)
    os.close(first)
    assert not is_locked(path)
    lock(second)
    os.close(second)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_as_that(tmp_path: Path, monkeypatch, code) -> None:
    """It is not in use by anybody."""

    def flock(fd: int, kind: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "f").touch()
    fd = os.open(tmp_path / "f", os.O_RDWR)

    with pytest.raises(LocksUnsupported):
        lock(fd)
    with pytest.raises(LocksUnsupported):
        is_locked(tmp_path / "f")

    os.close(fd)
