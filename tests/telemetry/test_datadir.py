"""The data directory: one sidecar at a time, and a clear word where it can't be had."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from telemetry.datadir import DataDir, holder_of, is_held
from telemetry.errors import EXIT_FAULT, EXIT_RUNNING, EXIT_USAGE, CommandError
from tests.telemetry.sidecar_process import SidecarProcess


def test_a_second_holder_is_refused_and_told_the_first_ones_pid(tmp_path):
    """From the first moment on, before anything is published. Row 14."""
    first = DataDir(tmp_path)

    with pytest.raises(CommandError, match=f"pid {os.getpid()}$") as caught:
        DataDir(tmp_path)

    assert caught.value.exit_code == EXIT_RUNNING
    first.close()


def test_after_a_close_it_can_be_had_again(tmp_path):
    """The lock file stays; the lock does not."""
    first = DataDir(tmp_path)
    first.close()
    first.close()

    DataDir(tmp_path).close()

    assert not is_held(tmp_path)


def test_who_holds_it_and_where_it_listens_can_be_read(tmp_path):
    """`run` uses a sidecar that is at work already."""
    nobody = is_held(tmp_path)
    held = DataDir(tmp_path)
    held.publish("ipc:///run/with spaces.sock")

    assert not nobody and is_held(tmp_path)
    assert holder_of(tmp_path) == (str(os.getpid()), "ipc:///run/with spaces.sock")
    held.close()


def test_asking_who_holds_it_keeps_nobody_from_holding_it(tmp_path):
    """The question itself takes no lock that a sidecar that starts now would meet."""
    DataDir(tmp_path).close()

    assert not is_held(tmp_path)
    DataDir(tmp_path).close()


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_as_that(tmp_path, monkeypatch, error):
    """Nobody holds it: "in use by pid unknown" would send its reader searching."""

    def flock(fd: int, operation: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", flock)

    with pytest.raises(CommandError, match="can't lock files") as caught:
        DataDir(tmp_path)

    assert caught.value.exit_code == EXIT_USAGE and os.strerror(error) in str(caught.value)
    assert not is_held(tmp_path)


@pytest.mark.parametrize("path", ["file/below", "/proc/telemetry", "nul\0"])
def test_a_directory_that_can_not_be_made_is_named(tmp_path, path, monkeypatch):
    """Below a file, on a file system that takes nothing, or no path at all. Row 13."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()

    with pytest.raises(CommandError) as caught:
        DataDir(Path(path))

    assert caught.value.exit_code == EXIT_USAGE
    assert path in str(caught.value) and "--data-dir" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_named(tmp_path):
    """The same for anybody but root. Row 13."""
    tmp_path.chmod(0o500)

    with pytest.raises(CommandError, match="Permission denied"):
        DataDir(tmp_path)


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_directory_that_was_taken_away_is_noticed(tmp_path, how):
    """What would be written from then on nobody could find. Row 13."""
    path = tmp_path / "data"
    held = DataDir(path)
    was_there = held.is_there
    if how == "removed":
        shutil.rmtree(path)
    else:
        path.rename(tmp_path / "elsewhere")
    if how == "replaced":
        DataDir(path).close()

    assert was_there and not held.is_there
    held.close()


def test_a_sidecar_whose_data_directory_is_removed_says_so_and_ends(tmp_path):
    """It must not go on to acknowledge what nobody can ever read. Row 13."""
    with SidecarProcess(tmp_path / "d") as sidecar:
        shutil.rmtree(tmp_path / "d")

        assert sidecar.wait() == EXIT_FAULT
        assert "was removed or moved" in sidecar.log and "Traceback" not in sidecar.log
