"""`rm`: what may go, what must stay, and that nothing is ever half gone."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.files import sync_file
from telemetry.cli import main
from telemetry.commands.remove_runs import Consent, remove_runs
from telemetry.datadir import DataDir
from telemetry.errors import CommandError
from telemetry.journal.layout import segments
from telemetry.journal.writer import JournalWriter
from telemetry.sinks.cursor import Cursor
from telemetry.supervise.removal import REMOVING
from telemetry.supervise.tombstones import read_tombstone
from tests.faults.crash_points import cut_everywhere, kill_everywhere
from tests.telemetry.test_retention import left, make_run

YES = ("--yes",)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The directory of runs in a data directory."""
    path = tmp_path / "data" / "runs"
    path.mkdir(parents=True)
    return path


def rm(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    code = main(["rm", *map(str, args)])
    return code, capsys.readouterr().err


def test_a_run_that_a_sink_elsewhere_has_goes_and_leaves_its_tombstone(runs, capsys) -> None:
    """As retention leaves it: late events of it begin no new journal."""
    paths = [make_run(runs, run_id, 1) for run_id in ("a", "b")]

    code, err = rm(capsys, *paths, *YES)

    assert code == 0 and left(runs) == set() and "removed:" in err and "1.1 MB" in err
    tombstone = read_tombstone(runs.parent, "a")
    assert tombstone is not None and "telemetry rm" in tombstone.reason and tombstone.streams


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"done": ("tensorboard",)}, "sink wandb does not have all of it yet"),
    ({"state": "running"}, "it has not ended"),
    ({"as_of_row": 2}, "it has not ended"),
]


@pytest.mark.parametrize(("fields", "why"), REFUSED)
def test_what_is_not_safe_elsewhere_stays_unless_told(runs, capsys, fields, why) -> None:
    """The reason is one line, and the way is in it; nothing else goes either."""
    safe, unsafe = make_run(runs, "safe", 1), make_run(runs, "unsafe", 1, **fields)

    code, err = rm(capsys, safe, unsafe, *YES)

    assert code == 2 and left(runs) == {"safe", "unsafe"}
    assert why in err and "--force" in err and err.count("\n") == 1
    assert rm(capsys, unsafe, "--force", *YES)[0] == 0 and left(runs) == {"safe"}
    assert read_tombstone(runs.parent, "unsafe") is not None


def test_tensorboard_alone_is_not_elsewhere(runs, capsys) -> None:
    """Its files are in the run's directory, and go with it."""
    path = make_run(runs, "r", 1, wandb_mode="disabled")
    (path / "cursors" / "wandb.json").unlink()

    code, err = rm(capsys, path, *YES)

    assert code == 2 and "no sink has it outside its own directory" in err and left(runs) == {"r"}


def test_an_offline_run_that_was_not_uploaded_stays(runs, capsys) -> None:
    """Its only copy is in the directory; once uploaded it may go."""
    path = make_run(runs, "r", 1)
    fragment = path / "wandb" / "offline-run-20260731_101500-r"
    fragment.mkdir(parents=True)

    code, err = rm(capsys, path, *YES)

    assert code == 2 and "is not uploaded yet" in err
    (fragment / "run-r.wandb.synced").touch()
    assert rm(capsys, path, *YES)[0] == 0


def test_a_run_that_is_being_written_stays_even_if_told(runs, capsys) -> None:
    """Or one that a sidecar may go on with at any moment. Exit code 5: in use."""
    path = make_run(runs, "r", 1)
    with JournalWriter(path / "journal"):
        assert rm(capsys, path, "--force", *YES)[0] == 5
    going_on = make_run(runs, "s", 1, state="running")
    held = DataDir(runs.parent)
    code, err = rm(capsys, going_on, "--force", *YES)
    held.close()

    assert code == 5 and "is running; end it first" in err and left(runs) == {"r", "s"}
    assert rm(capsys, going_on, "--force", *YES)[0] == 0


def test_a_run_that_a_sink_is_at_work_on_stays_even_if_told(runs, capsys) -> None:
    """It would go on writing into a directory that is gone."""
    path = make_run(runs, "r", 1)
    with Cursor(path, "wandb", "r"):
        code, err = rm(capsys, path, "--force", *YES)

    assert code == 5 and "sink wandb is at work" in err and left(runs) == {"r"}
    assert read_tombstone(runs.parent, "r") is None


def test_a_dry_run_says_the_same_and_removes_nothing(runs, capsys) -> None:
    """And refuses the same."""
    path = make_run(runs, "r", 1)
    unsafe = make_run(runs, "u", 1, done=())

    code, err = rm(capsys, path, "--dry-run")

    assert code == 0 and "would remove" in err and left(runs) == {"r", "u"}
    assert rm(capsys, unsafe, "--dry-run")[0] == 2
    assert not (runs.parent / "removed").exists()


class Terminal(io.StringIO):
    """Someone at a terminal, who answers."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 130), ("", 130), ("\n", 130)])
def test_at_a_terminal_it_asks(runs, capsys, monkeypatch, answer, code) -> None:
    """Anything but yes is no."""
    path = make_run(runs, "r", 1)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))

    found = main(["rm", str(path)])

    assert found == code and (left(runs) == set()) == (code == 0)
    assert "for ever? [y/N]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda runs: runs / "nope", "there is no"),
        (lambda runs: runs, "is not a recorded run"),
        (lambda runs: make_run(runs / "r.repaired" / "x", "r", 1), "not in a data directory"),
    ],
)
def test_what_is_no_run_of_a_data_directory_is_one_clear_line(runs, capsys, make, text) -> None:
    """Exit code 2, and nothing is touched."""
    code, err = rm(capsys, make(runs), *YES)

    assert code == 2 and text in err and err.count("\n") == 1


def test_a_link_is_not_followed(runs, tmp_path, capsys) -> None:
    """What it leads to is somebody else's."""
    target = make_run(tmp_path / "elsewhere" / "runs", "r", 1)
    (runs / "r").symlink_to(target)

    code, err = rm(capsys, runs / "r", "--force", *YES)

    assert code == 2 and "is a link" in err and (target / "journal").is_dir()


def test_a_journal_that_is_no_more_known_is_left_to_the_user(runs, capsys) -> None:
    """Without its uuid there can be no tombstone, and late events would begin it anew."""
    path = make_run(runs, "r", 1)
    for segment in segments(path / "journal"):
        segment.path.write_bytes(b"\0" * 100)

    code, err = rm(capsys, path, "--force", *YES)

    assert code == 2 and "delete it by hand" in err and left(runs) == {"r"}


def story(root: Path, promises: dict[str, Any]) -> None:
    """A run is made and synced, and removed."""
    runs = root / "data" / "runs"
    if not promises.get("is_made"):
        shutil.rmtree(root / "data", ignore_errors=True)
        made = make_run(runs, "r", 1, done=())
        for directory, _, names in os.walk(root / "data", topdown=False):
            for name in names:
                sync_file(Path(directory) / name)
            sync_file(Path(directory))
        sync_file(root)
        assert made.is_dir()
        promises["is_made"] = True
    if (runs / "r").is_dir():
        remove_runs([runs / "r"], Consent(is_forced=True, is_agreed=True))
        # One that was killed has promised nothing: a power cut may bring the run back, whole.
        promises["is_removed"] = True


def check(root: Path, promises: dict[str, Any]) -> None:
    """The run is whole, or gone with its tombstone; never half, never gone without."""
    if not promises.get("is_made"):
        return
    runs = root / "data" / "runs"
    if (runs / "r").is_dir():
        assert not promises.get("is_removed")
        files = {path.name for path in (runs / "r").rglob("*") if path.is_file()}
        assert {"run.json", "ballast", "durable", "wandb.json"} <= files
        assert (runs / "r" / "ballast").stat().st_size == 1024 * 1024
    else:
        tombstone = read_tombstone(root / "data", "r")
        assert tombstone is not None and tombstone.uuids and tombstone.streams


def test_a_power_cut_at_any_call_leaves_the_run_or_its_tombstone_whole() -> None:
    """Every call that changes the disk is the last one, once."""
    assert cut_everywhere(story, check, throws=2) > 15


def test_a_kill_at_any_call_leaves_what_the_next_rm_finishes() -> None:
    """The rest that was renamed aside goes with the next removal."""
    assert kill_everywhere(story, story, check, throws=1) > 15


def test_what_a_killed_rm_left_aside_goes_with_the_next(runs, capsys) -> None:
    """Also at the next start of the sidecar."""
    make_run(runs, "old", 1).rename(runs / f"{REMOVING}old.1")
    path = make_run(runs, "r", 1)

    rm(capsys, path, *YES)

    assert left(runs) == set()


def test_kill_9_of_the_command_leaves_the_run_or_the_tombstone(runs) -> None:
    """The real process, killed as soon as it says that it begins."""
    path = make_run(runs, "r", 1)
    command = [sys.executable, "-m", "telemetry", "rm", str(path), "--yes"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()

    process.send_signal(signal.SIGKILL)

    process.wait()
    process.stderr.close()
    is_whole = (path / "ballast").is_file() and (path / "run.json").is_file()
    assert is_whole or read_tombstone(runs.parent, "r") is not None


def test_a_disk_that_does_not_let_go_is_one_clear_line(runs, monkeypatch) -> None:
    """The run stays as it was."""
    path = make_run(runs, "r", 1)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("telemetry.supervise.removal.write_tombstone", refuse)

    with pytest.raises(CommandError, match="Read-only file system") as caught:
        remove_runs([path], Consent(is_agreed=True))

    assert caught.value.exit_code == 4 and left(runs) == {"r"}
