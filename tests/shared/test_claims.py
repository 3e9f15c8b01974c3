"""Claims: a name is held by one at a time, and by nobody that is dead."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.emitter.claims import Claim, ClaimTaken, claim_worker, holder


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_name_is_held_by_one_and_free_again_after_release(tmp_path):
    """No file is left behind."""
    first = Claim(tmp_path / "spool", "r.rank0")
    with pytest.raises(ClaimTaken) as taken:
        Claim(tmp_path / "spool", "r.rank0")
    assert taken.value.pid == str(os.getpid())

    first.release()
    first.release()

    Claim(tmp_path / "spool", "r.rank0").release()
    assert list((tmp_path / "spool").iterdir()) == []


def test_the_holder_of_a_name_is_known_while_it_lives(tmp_path):
    """And nobody is disturbed by the question."""
    assert holder(tmp_path, "n") == ""
    claim = Claim(tmp_path, "n")
    assert holder(tmp_path, "n") == str(os.getpid())

    claim.release()

    assert holder(tmp_path, "n") == "" and list(tmp_path.iterdir()) == []


def test_a_process_that_dies_holds_nothing(tmp_path):
    """Nobody has to clean up after it."""
    code = (
        "import os, sys; from pathlib import Path; from shared.emitter.claims import Claim; "
        "Claim(Path(sys.argv[1]), 'r.rank0'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)

    Claim(tmp_path, "r.rank0").release()


def test_workers_get_the_lowest_number_that_is_free(tmp_path):
    """Numbers are used again: a thousand short workers are not a thousand sources."""
    (zero, first), (one, second) = (claim_worker(tmp_path, "r", "rank0") for _ in range(2))
    first.release()
    again, third = claim_worker(tmp_path, "r", "rank0")

    with pytest.raises(OSError, match="at once"):
        claim_worker(tmp_path, "r", "rank0", 2)

    assert (zero, one, again) == (0, 1, 0)
    second.release(), third.release()


def test_a_claim_that_was_released_between_open_and_lock_is_taken_anew(tmp_path, monkeypatch):
    """A lock on a file that has no name any more would be no lock."""
    held, flock = Claim(tmp_path, "n"), fcntl.flock

    def late(fd: int, how: int) -> None:
        held.release()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    before = open_descriptors()
    claim = Claim(tmp_path, "n")
    assert open_descriptors() == before  # one was released, and one taken
    monkeypatch.undo()

    with pytest.raises(ClaimTaken):
        Claim(tmp_path, "n")
    claim.release()


def test_a_name_that_cannot_be_had_costs_no_descriptor(tmp_path, monkeypatch):
    """Held by another one, or on a file system without locks."""
    held, flock = Claim(tmp_path, "n"), fcntl.flock
    before = open_descriptors()

    with pytest.raises(ClaimTaken):
        Claim(tmp_path, "n")
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(38, "no locks")))
    with pytest.raises(OSError, match="no locks"):
        Claim(tmp_path, "m")
    monkeypatch.setattr(fcntl, "flock", flock)
    assert open_descriptors() == before
    held.release()

    assert open_descriptors() == before - 1


def test_a_child_lets_go_of_its_copy_and_the_name_stays_held(tmp_path):
    """The file with its parent's lock keeps its name, and only the child's descriptor goes."""
    claim = Claim(tmp_path, "n")
    pid = os.fork()
    if pid == 0:
        before = open_descriptors()
        claim.abandon()
        claim.abandon()
        claim.release()
        os._exit(int(open_descriptors() != before - 1 or not list(tmp_path.iterdir())))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    assert holder(tmp_path, "n") == str(os.getpid())
    claim.release()


def test_a_name_whose_holder_wrote_nothing_is_held_by_somebody(tmp_path):
    """It was killed between its lock and its pid, or has no room for it."""
    path = tmp_path / "n.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        assert holder(tmp_path, "n") == ""
        with pytest.raises(ClaimTaken) as taken:
            Claim(tmp_path, "n")
    assert taken.value.pid == "unknown"
