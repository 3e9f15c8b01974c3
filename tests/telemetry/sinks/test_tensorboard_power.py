"""The power cut at every call, where the stories of the fault suite don't lead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.files import sync_file
from telemetry.sinks.base import Position
from telemetry.sinks.cursor import Cursor
from telemetry.sinks.tensorboard.starts import Starts
from tests.faults.crash_points import cut_everywhere
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.telemetry.sinks.helpers_tensorboard import by_tag, read_all, sink_in

RUN = "run"
OLD_NAME = "events.out.tfevents.00000000000000000001.telemetry"


def rows() -> list[Any]:
    made = RowMaker()
    for step in range(6):
        made.metrics(step, {"train/loss": float(step)})
    return made.rows


def upgrade(root: Path, promises: dict[str, Any]) -> None:
    """A sink of this version finds what one of the first version left, and writes it anew."""
    _leave_old_files(root)
    promises["is_old_there"] = True
    with Cursor(root / "run", "tensorboard", RUN) as cursor:
        sink = sink_in(root / "run")
        for at in range(sink.open(cursor.position), 6, 2):
            sink.write(rows()[at : at + 2])
            cursor.commit(sink.commit())
        sink.close()


def _leave_old_files(root: Path) -> None:
    for directory in (root / "run", root / "run" / "tensorboard"):
        directory.mkdir(exist_ok=True)
        sync_file(directory.parent)
    for name in ("rank0", "rank0.64"):
        directory = root / "run" / "tensorboard" / name
        directory.mkdir()
        sync_file(directory.parent)
        # What is not the sink's keeps the directory, so that nobody else syncs its going.
        for path in (directory / OLD_NAME, directory / "notes.txt"):
            path.write_bytes(b"of the first version")
            sync_file(path)
        sync_file(directory)
    with Cursor(root / "run", "tensorboard", RUN) as cursor:
        cursor.commit(Position(6, {"files": {}, "policy": {}}))


def check_upgrade(root: Path, promises: dict[str, Any]) -> None:
    """Whatever the cursor says by now, no old file is beside the new ones in the end."""
    if not promises.get("is_old_there"):
        return
    with Cursor(root / "run", "tensorboard", RUN) as cursor:
        sink = sink_in(root / "run")
        sink.write(rows()[sink.open(cursor.position) :])
        sink.commit()
        sink.close()
    assert not list((root / "run" / "tensorboard").glob(f"*/{OLD_NAME}"))
    assert by_tag(read_all(root / "run"), "train/loss") == [(s, float(s)) for s in range(6)]


def test_files_of_another_version_do_not_come_back() -> None:
    """Their removal is on disk before the first position of this version."""
    assert cut_everywhere(upgrade, check_upgrade, throws=4) > 40


def count(root: Path, promises: dict[str, Any]) -> None:
    for _ in range(3):
        starts = Starts(root / "run")
        starts.begin(0)
        number = starts.number()
        assert number > promises.get("number", 0)
        promises["number"] = number


def check_count(root: Path, promises: dict[str, Any]) -> None:
    starts = Starts(root / "run")
    starts.begin(0)
    assert starts.number() > promises.get("number", 0)


def test_a_start_is_on_disk_before_its_number_is_used() -> None:
    """With the directory that it is in."""
    assert cut_everywhere(count, check_count, throws=6) > 12
