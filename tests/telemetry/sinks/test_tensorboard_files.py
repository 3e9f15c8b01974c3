"""The files of the TensorBoard sink: names that never come back, versions, and planted links."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from telemetry.run_dir import RunFile
from telemetry.sinks.base import START, Position, SinkContext, SinkUnavailable
from telemetry.sinks.tensorboard import TensorBoardSink
from telemetry.sinks.tensorboard.bounds import Bounds
from telemetry.sinks.tensorboard.event_files import DamagedFiles, EventFiles
from telemetry.sinks.tensorboard.starts import Starts
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.telemetry.sinks.helpers_tensorboard import (
    by_tag,
    read_all,
    sink_in,
    through_json,
    write_all,
)

EVENTS = "events.out.tfevents.00000000000000000000.000001.telemetry"


@pytest.fixture
def journal() -> RowMaker:
    journal = RowMaker()
    journal.start(config={"lr": 0.1})
    for step in (1, 2, 3, 2, 4, 4, 5):
        journal.metrics(step, {"train/loss": float(step)})
        journal.hardware({"cpu_percent": 1.0})
    return journal


def event_files(out_dir: Path) -> set[str]:
    return {str(path.relative_to(out_dir)) for path in out_dir.glob("tensorboard/*/events*")}


def inodes(out_dir: Path) -> dict[str, int]:
    return {name: (out_dir / name).stat().st_ino for name in event_files(out_dir)}


@pytest.mark.parametrize("seed", range(8))
def test_no_file_name_is_ever_used_twice(tmp_path: Path, journal: RowMaker, seed: int) -> None:
    """The fast loader keeps a removed file open, and never looks at the name again."""
    dice, ever, position = random.Random(seed), {}, START
    for _ in range(12):
        sink = sink_in(tmp_path)
        first = sink.open(through_json(position))
        for name, inode in inodes(tmp_path).items():
            assert ever.get(name, inode) == inode
        sink.write(journal.rows[first : first + dice.randint(0, 4)])
        reached = sink.commit()  # as a buffer that is full would bring it to the disk
        sink.close()
        for name, inode in inodes(tmp_path).items():
            assert ever.setdefault(name, inode) == inode
        if dice.random() < 0.5:
            position = reached
        elif dice.random() < 0.2:
            position = START


def test_rows_that_are_there_already_are_not_written_again(
    tmp_path: Path, journal: RowMaker
) -> None:
    """Whoever reads the journal may begin before the position."""
    write_all(tmp_path / "whole", journal.rows)
    sink = sink_in(tmp_path / "run")
    sink.open(START)
    sink.write(journal.rows[:6])
    sink.write(journal.rows)
    sink.commit()
    sink.close()

    assert read_all(tmp_path / "run") == read_all(tmp_path / "whole")


def test_a_restart_after_hundreds_of_sessions_goes_on(tmp_path: Path, journal: RowMaker) -> None:
    """The file of last steps has lines of sessions that were forgotten since."""
    for number in range(300):
        journal.metrics(1, {"x": 1.0}, session=f"session-{number}")
    sink = sink_in(tmp_path)
    sink.open(START)
    for at in range(0, len(journal.rows), 50):
        sink.write(journal.rows[at : at + 50])
        position = sink.commit()
    sink.close()

    assert sink_in(tmp_path).open(through_json(position)) == len(journal.rows)


def test_the_count_of_starts_survives_the_loss_of_its_file(
    tmp_path: Path, journal: RowMaker
) -> None:
    """The names that are there tell the least that was counted."""
    position = write_all(tmp_path, journal.rows[:5])
    (tmp_path / "cursors" / "tensorboard.starts").unlink()

    sink = sink_in(tmp_path)
    sink.open(through_json(position))
    sink.write(journal.rows[5:])
    sink.commit()
    sink.close()

    assert any(".000002." in name for name in event_files(tmp_path))
    write_all(tmp_path / "whole", journal.rows)
    assert read_all(tmp_path) == read_all(tmp_path / "whole")


@pytest.mark.parametrize("content", ["", "[1]", '{"starts": "x"}', '{"starts": -5}', "{" * 100_000])
def test_a_damaged_count_of_starts_is_counted_anew(tmp_path: Path, content: str) -> None:
    """Whatever is in it."""
    (tmp_path / "cursors").mkdir()
    (tmp_path / "cursors" / "tensorboard.starts").write_text(content)
    starts = Starts(tmp_path)

    starts.begin(7)

    assert starts.number() == 8
    assert json.loads((tmp_path / "cursors" / "tensorboard.starts").read_text()) == {"starts": 8}


def test_a_process_that_writes_nothing_is_no_start(tmp_path: Path, journal: RowMaker) -> None:
    """A run that stands still can be looked at for years."""
    position = write_all(tmp_path, journal.rows)
    for _ in range(3):
        sink = sink_in(tmp_path)
        sink.open(through_json(position))
        assert through_json(sink.commit()).row == position.row
        sink.close()

    assert json.loads((tmp_path / "cursors" / "tensorboard.starts").read_text()) == {"starts": 1}


def test_files_of_the_first_version_are_written_anew(
    tmp_path: Path, journal: RowMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """A position without a version, and subdirectories that are no longer wanted."""
    for directory in ("rank0", "rank0.2", "rank0.64"):
        path = tmp_path / "tensorboard" / directory
        path.mkdir(parents=True)
        (path / "events.out.tfevents.00000000000000000003.telemetry").write_bytes(b"old")
    (tmp_path / "tensorboard" / "rank0" / "notes.txt").write_text("mine")
    files = {"rank0/events.out.tfevents.00000000000000000003.telemetry": 3}
    old = Position(9, {"files": files, "policy": {"context": {}, "streams": {"streams": []}}})

    sink = sink_in(tmp_path)
    next_row = sink.open(old)
    sink.write(journal.rows)
    sink.commit()
    sink.close()

    assert next_row == 0 and "another version" in caplog.text
    assert not any(name.endswith("3.telemetry") for name in event_files(tmp_path))
    assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == [
        "hardware", "rank0", "rank0.2",
    ]  # fmt: skip
    assert (tmp_path / "tensorboard" / "rank0" / "notes.txt").exists()
    write_all(tmp_path / "whole", journal.rows)
    assert read_all(tmp_path) == read_all(tmp_path / "whole")


def test_a_committed_file_that_lacks_a_byte_is_written_anew(
    tmp_path: Path, journal: RowMaker
) -> None:
    """A reader would stop there, and never see what comes behind."""
    position = write_all(tmp_path, journal.rows)
    path = tmp_path / "tensorboard" / next(iter(position.state["files"]))
    os.truncate(path, path.stat().st_size - 1)

    assert sink_in(tmp_path).open(through_json(position)) == 0


def test_cores_on_request_are_another_version(tmp_path: Path, journal: RowMaker) -> None:
    """Asked for later, the charts are there from the first row."""
    journal.hardware({"cpu/0/percent": 5.0, "cpu/1/percent": 6.0})
    position = write_all(tmp_path, journal.rows)
    assert not [each for each in read_all(tmp_path) if "/cpu/" in each.tag]

    sink = TensorBoardSink(SinkContext("run", tmp_path, RunFile(), {"per_core": "1"}))
    assert sink.open(through_json(position)) == 0
    sink.write(journal.rows)
    sink.commit()
    sink.close()

    found = read_all(tmp_path)
    assert [value for _, value in by_tag(found, "~hw/node1/cpu/1/percent")] == [6.0]


@pytest.mark.parametrize("place", ["tensorboard", "tensorboard/rank0", "tensorboard/hardware"])
def test_a_planted_link_is_not_followed(tmp_path: Path, journal: RowMaker, place: str) -> None:
    """Nothing is written, cut or removed where it leads, and the run is whole."""
    outside = tmp_path / "outside"
    outside.mkdir()
    theirs = outside / "events.out.tfevents.00000000000000000000.000001.telemetry"
    theirs.write_bytes(b"theirs")
    (outside / "rank0").mkdir()
    (outside / "rank0" / theirs.name).write_bytes(b"theirs")
    link = tmp_path / "run" / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)

    write_all(tmp_path / "run", journal.rows)

    assert theirs.read_bytes() == (outside / "rank0" / theirs.name).read_bytes() == b"theirs"
    assert sorted(path.name for path in outside.rglob("*")) == sorted(
        [theirs.name, "rank0", theirs.name]
    )
    write_all(tmp_path / "whole", journal.rows)
    assert read_all(tmp_path / "run") == read_all(tmp_path / "whole")


@pytest.mark.parametrize("place", ["tensorboard", "tensorboard/rank0"])
def test_a_link_in_place_of_what_was_committed_is_not_followed(
    tmp_path: Path, journal: RowMaker, place: str
) -> None:
    """The same files, elsewhere: they are a stranger's by now."""
    position = write_all(tmp_path / "run", journal.rows[:6])
    target = tmp_path / "moved"
    (tmp_path / "run" / place).rename(target)
    (tmp_path / "run" / place).symlink_to(target)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}

    sink = sink_in(tmp_path / "run")
    assert sink.open(through_json(position)) == 0
    sink.write(journal.rows)
    sink.commit()
    sink.close()

    after = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert after == before
    write_all(tmp_path / "whole", journal.rows)
    assert read_all(tmp_path / "run") == read_all(tmp_path / "whole")


@pytest.mark.parametrize("name", ["victim", EVENTS])
def test_a_committed_name_that_leads_elsewhere_is_not_cut(tmp_path: Path, name: str) -> None:
    """A position is a file that somebody may have written."""
    victim = tmp_path / "other" / name
    victim.parent.mkdir()
    victim.write_text("precious")
    sink = sink_in(tmp_path / "run")
    sink.open(START)
    state = sink.commit().state | {"files": {f"../../other/{name}": 3}}

    assert sink_in(tmp_path / "run").open(Position(5, state)) == 0
    assert victim.read_text() == "precious"


def test_a_file_of_the_next_name_is_another_writers(tmp_path: Path, journal: RowMaker) -> None:
    """It is not written into; opened again, the sink takes another name."""
    sink = sink_in(tmp_path)
    sink.open(START)
    sink.write(journal.rows)
    theirs = "events.out.tfevents.00000000000000000000.000001.telemetry"
    (tmp_path / "tensorboard" / "rank0").mkdir(parents=True)
    (tmp_path / "tensorboard" / "rank0" / theirs).write_bytes(b"theirs")

    with pytest.raises(SinkUnavailable, match="File exists"):
        sink.commit()

    assert (tmp_path / "tensorboard" / "rank0" / theirs).read_bytes() == b"theirs"
    write_all(tmp_path, journal.rows)
    write_all(tmp_path / "whole", journal.rows)
    assert read_all(tmp_path) == read_all(tmp_path / "whole")


def test_a_link_in_place_of_the_last_steps_is_not_followed(
    tmp_path: Path, journal: RowMaker
) -> None:
    """Also one that leads to the very bytes."""
    position = write_all(tmp_path, journal.rows)
    path = tmp_path / "cursors" / position.state["lasts"][0]
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")

    assert sink_in(tmp_path).open(through_json(position)) == 0
    assert (tmp_path / "moved").exists()


def test_writes_that_the_disk_takes_in_parts_are_whole(
    tmp_path: Path, journal: RowMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write may take less than it was given."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data[:7]), at))
    position = write_all(tmp_path, journal.rows)
    monkeypatch.undo()

    write_all(tmp_path / "whole", journal.rows)
    assert read_all(tmp_path) == read_all(tmp_path / "whole")
    assert sink_in(tmp_path).open(through_json(position)) == len(journal.rows)


def test_buffers_are_bounded_between_commits(tmp_path: Path) -> None:
    """More than the bound is on disk, and cut again where no commit follows."""
    files = EventFiles(tmp_path / "tensorboard", Starts(tmp_path), buffer_max_bytes=100)
    files.recover(0, {})
    for row in range(20):
        files.append("rank0", row, 0, b"event" * 4)

    (path,) = (tmp_path / "tensorboard" / "rank0").iterdir()
    assert path.stat().st_size > 500
    files.append("rank0", 20, 0, b"not on disk yet")
    files.recover(0, {})
    assert files.sync() == {}
    assert not list((tmp_path / "tensorboard").glob("*/*"))


def test_a_buffer_that_was_written_or_dropped_counts_no_more(
    tmp_path: Path,
) -> None:
    """Otherwise every row of a long run would be synced by itself."""
    files = EventFiles(tmp_path / "tensorboard", Starts(tmp_path), buffer_max_bytes=500)
    for row in range(6):
        if row % 2:
            files.recover(0, {})
        for number in range(4):
            files.append("rank0", row, 0, bytes([number]) * 30)
        assert not list((tmp_path / "tensorboard").glob("*/*.telemetry"))
        files.recover(0, {})
    for row in range(4):
        for _ in range(4):
            files.append("rank0", row, 0, b"e" * 30)
        (length,) = files.sync().values()
        files.append("rank0", row, 0, b"e" * 30)
        (path,) = (tmp_path / "tensorboard").glob("*/*.telemetry")
        assert path.stat().st_size == length


@pytest.mark.parametrize("place", ["rank0/notes.txt", EVENTS, f"rank0/deeper/{EVENTS}", "link"])
def test_what_is_no_event_file_of_this_sink_is_never_cut(tmp_path: Path, place: str) -> None:
    """By its name, or by its place. A position may name anything."""
    root = tmp_path / "tensorboard"
    path = root / ("rank0/real" if place == "link" else place)
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    if place == "link":
        place = f"rank0/{EVENTS}"
        (root / place).symlink_to(path)

    with pytest.raises(DamagedFiles, match="no event file of this sink"):
        EventFiles(root, Starts(tmp_path)).recover(5, {place: 3})

    assert path.read_text() == "precious"


def test_every_file_begins_with_the_version_that_tensorboard_asks_for(tmp_path: Path) -> None:
    """Once each. What else lies beside the directories is left alone."""
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "notes.txt").write_text("mine")
    files = EventFiles(tmp_path / "tensorboard", Starts(tmp_path))
    files.recover(0, {})
    for directory in ("rank0", "rank1", "rank0"):
        files.append(directory, 0, 0, b"event")
    files.sync()

    found = [path.read_bytes() for path in (tmp_path / "tensorboard").glob("*/*.telemetry")]

    assert [data.count(b"brain.Event:2") for data in found] == [1, 1]
    assert all(data.index(b"brain.Event:2") < data.index(b"event") for data in found)
    assert (tmp_path / "tensorboard" / "notes.txt").read_text() == "mine"


def test_a_long_run_keeps_its_last_steps_short(tmp_path: Path) -> None:
    """A million commits of one curve are not a million lines."""
    journal = RowMaker()
    for step in range(300):
        journal.metrics(step, {"train/loss": float(step)})
    sink = sink_in(tmp_path, Bounds(lasts_bytes=1000))
    sink.open(START)
    for row in journal.rows:
        sink.write([row])
        position = sink.commit()
    sink.close()

    sizes = [p.stat().st_size for p in (tmp_path / "cursors").glob("tensorboard.lasts.*")]
    assert len(sizes) <= 2 and sum(sizes) < 4000
    assert sink_in(tmp_path).open(through_json(position)) == 300
