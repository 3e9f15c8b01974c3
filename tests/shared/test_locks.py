"""Locks: held by one, seen by all, and free when their process has ended."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shared.locks import (
    Locked,
    LocksUnsupported,
    holder_pid,
    is_locked,
    lock,
    lock_unless_alive,
    locked,
    write_holder,
)


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


def test_without_a_descriptor_to_ask_with_a_lock_does_not_count_as_free(
    tmp_path: Path, monkeypatch
) -> None:
    """Its holder may be at work."""
    (tmp_path / "f").touch()

    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", full)

    with pytest.raises(OSError, match="Too many open files"):
        is_locked(tmp_path / "f")


def test_a_named_pipe_in_the_place_of_a_lock_is_not_waited_for(tmp_path: Path) -> None:
    """Opening one for reading would wait until somebody writes."""
    os.mkfifo(tmp_path / "lock")

    assert not is_locked(tmp_path / "lock")


def test_a_holder_writes_itself_over_a_longer_one(tmp_path: Path) -> None:
    """Nothing of the holder before is left."""
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    assert holder_pid(fd) == 0

    write_holder(fd, "123456 ipc:///a/long/address\n")
    write_holder(fd, "7 x\n")

    assert holder_pid(fd) == 7
    assert (tmp_path / "lock").read_bytes() == b"7 x\n"
    os.close(fd)


def test_a_lock_is_not_waited_for_while_the_process_named_in_it_lives(
    tmp_path: Path, monkeypatch
) -> None:
    """It may hold it for days."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    held, asked = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    lock(held)
    write_holder(held, f"{os.getpid()}\n")

    with pytest.raises(Locked):
        lock_unless_alive(asked)

    os.close(held), os.close(asked)


def test_a_lock_whose_holder_is_ending_is_taken_when_it_has_ended(tmp_path: Path) -> None:
    """The guard that is named in it is gone; the kernel is about to end its service."""
    held, asked = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    guard = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, check=True)  # fmt: skip
    lock(held)
    write_holder(held, guard.stdout.decode())
    service = threading.Timer(0.2, os.close, [held])
    service.start()

    lock_unless_alive(asked)

    assert is_locked(tmp_path / "lock")
    service.join()
    os.close(asked)


def test_an_ending_that_takes_too_long_is_not_waited_for(tmp_path: Path) -> None:
    """A pid that nobody has, in a lock that somebody holds and goes on holding."""
    held, asked = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    lock(held)
    write_holder(held, f"{2**31 - 1}\n")

    with pytest.raises(Locked):
        lock_unless_alive(asked, ending_max_s=0.1)

    os.close(held), os.close(asked)


@pytest.mark.parametrize("text", ["", "0", "-1", "pid", f"{2**31}", f"{2**32 - 1}"])
def test_a_lock_with_no_pid_in_it_is_held_by_somebody_who_lives(tmp_path: Path, text) -> None:
    """Nobody can tell, whatever was written there: it is not waited for, and not taken."""
    held, asked = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    lock(held)
    write_holder(held, text)

    with pytest.raises(Locked):
        lock_unless_alive(asked)

    os.close(held), os.close(asked)


def test_a_process_that_has_ended_and_is_not_reaped_is_gone(tmp_path: Path, monkeypatch) -> None:
    """A container's first process may never reap it."""
    held, asked = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    lock(held)
    write_holder(held, str(pid))
    monkeypatch.setattr(time, "sleep", lambda _: os.close(held))

    lock_unless_alive(asked)

    os.waitpid(pid, 0)
    os.close(asked)


def test_a_lock_held_for_a_block_is_free_behind_it(tmp_path: Path) -> None:
    """Also where the block fails; its descriptor is closed."""
    with pytest.raises(ValueError, match="in the block"), locked(tmp_path):
        assert is_locked(tmp_path)
        raise ValueError("in the block")

    assert not is_locked(tmp_path)
