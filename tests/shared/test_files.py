"""Files: whole or as before, and durable by name."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from shared.files import (
    append_whole,
    bytes_on_disk,
    cut,
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


def test_a_directory_that_cannot_be_filled_says_why(tmp_path: Path) -> None:
    """The first of its name: there is no older one to put back."""

    def fail(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        write_directory_atomically(tmp_path / "d", fail)

    assert list(tmp_path.iterdir()) == []


def test_an_older_directory_comes_back_if_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch
) -> None:
    """It was moved aside already, and must not go with what is cleared away."""
    target, rename = tmp_path / "d", Path.rename
    write_directory_atomically(target, lambda d: (d / "a").write_text("1"))

    def failing(path: Path, to: Path) -> Path:
        if path.suffix == ".tmp":
            raise OSError(errno.EIO, "broken")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="broken"):
        write_directory_atomically(target, lambda d: (d / "a").write_text("2"))

    assert (target / "a").read_text() == "1" and list(tmp_path.iterdir()) == [target]


def test_every_new_name_on_the_way_to_a_directory_is_synced(tmp_path: Path, monkeypatch) -> None:
    """The parents that were made hold names, too."""
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)

    make_directory(tmp_path / "a" / "b" / "c")

    made = [tmp_path.parent, tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    assert synced == [str(path) for path in made]
    synced.clear()

    # The process that made it may have been killed before its sync.
    make_directory(tmp_path / "a" / "b")

    assert synced == [str(tmp_path / "a")]


def test_a_write_that_fails_at_the_end_of_a_file_leaves_no_part(
    tmp_path: Path, monkeypatch
) -> None:
    """The next one begins where it began."""
    real, room = os.pwrite, [3]

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, bytes(data)[: room.pop()], at)

    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    append_whole(fd, b"kept", 0)
    monkeypatch.setattr(os, "pwrite", pwrite)

    with pytest.raises(OSError, match="full"):
        append_whole(fd, b"gone again", 4)

    monkeypatch.undo()
    assert (tmp_path / "f").read_bytes() == b"kept"
    append_whole(fd, b", and more", 4)
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"kept, and more"


@pytest.mark.parametrize("seed", range(10))
def test_a_file_that_was_cut_stays_cut_after_a_power_cut(tmp_path: Path, seed: int) -> None:
    """A torn tail must not come back when something was written in its place."""
    root = tmp_path / "disk"
    root.mkdir()
    with ForgetfulDisk(root) as disk:
        write_atomically(root / "f", b"whole, torn")
        fd = os.open(root / "f", os.O_RDWR)

        cut(fd, 5)

        disk.power_cut(random.Random(seed))
        assert (root / "f").read_bytes() == b"whole"
        os.close(fd)


def test_the_bytes_on_disk_are_those_of_all_files_below(tmp_path: Path) -> None:
    """As the disk counts them, in whole blocks; links lead nowhere."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for path, size in ((tmp_path / "one", 5), (tmp_path / "a" / "b" / "two", 100_000)):
        path.write_bytes(bytes([1]) * size)
    (tmp_path / "a" / "link").symlink_to("/proc")
    files = [tmp_path / "one", tmp_path / "a" / "b" / "two"]
    expected = sum(path.stat().st_blocks * 512 for path in files)

    assert expected <= bytes_on_disk(tmp_path) <= expected + 5 * 4096
