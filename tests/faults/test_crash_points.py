"""Everything that is promised to be on disk, with the power cut at every single system call.

Each story has calls enough for every sync in it to be missed once: take one out of the
code, and the story that needs it fails.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from shared.clock import SystemClock
from shared.files import make_directory, sync_directory, sync_file
from telemetry.datadir import DataDir
from telemetry.journal.layout import MARK_NAME, segments
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import read_json, write_json
from telemetry.run_dir import RunFile
from telemetry.sinks.base import Position, SinkContext
from telemetry.sinks.cursor import Cursor
from telemetry.sinks.wandb import offline
from telemetry.sinks.wandb.local import LocalRun, Spot
from telemetry.sinks.wandb.selection import Selected
from telemetry.supervise.retention import Retention, read_tombstone
from tests.faults.crash_points import cut_everywhere, kill_everywhere
from tests.telemetry.journal.helpers import (
    RUN,
    numbers,
    read_all,
    stream,
    write,
)
from tests.telemetry.sinks import helpers_tensorboard
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.telemetry.sinks.wandb_sink.test_wandb_file import framed, history
from tests.wandb_contents import history_rows

SEGMENT_MAX_BYTES = 500
Promises = dict[str, Any]


def run_dir(root: Path) -> Path:
    return root / "data" / "runs" / RUN


# --- the journal


def open_journal(root: Path) -> JournalWriter:
    # As whoever opens a run does: the run's own directory may be there already.
    run_dir(root).mkdir(parents=True, exist_ok=True)
    return JournalWriter(run_dir(root) / "journal", SEGMENT_MAX_BYTES)


def durable_data_dir(root: Path) -> None:
    """As the sidecar makes it at its start."""
    make_directory(root / "data")
    make_directory(root / "data" / "runs")


def record(root: Path, promises: Promises) -> None:
    """A process that journals two sources into several segments, and starts once more."""
    durable_data_dir(root)
    for _ in range(2):
        with open_journal(root) as writer:
            note(writer, promises)
            for turn in range(3):
                for _ in range(3):
                    write(writer, 1)
                write(writer, 2, f"rank{turn % 2}")
                writer.sync()
                note(writer, promises)


def note(writer: JournalWriter, promises: Promises) -> None:
    """What a sidecar tells producers to be on disk."""
    promises["rows"] = max(promises.get("rows", 0), writer.durable_row)
    for source in ("rank0", "rank1"):
        seq = writer.durable_seq(stream(source))
        promises[source] = max(promises.get(source, -1), seq)


def check_journal(root: Path, promises: Promises) -> None:
    """All that was promised is there, no seq is passed over, and a crash is no damage."""
    durable_data_dir(root)
    with open_journal(root) as writer:
        assert writer.durable_row >= promises.get("rows", 0)
        had = {s: writer.durable_seq(stream(s)) for s in ("rank0", "rank1")}
        assert all(had[source] >= promises.get(source, -1) for source in had)
        assert writer.recovered.damage == []
    rows, damage = read_all(run_dir(root) / "journal")
    assert damage == [] and numbers(rows) == list(range(len(rows)))
    for source, last in had.items():
        assert [row.seq for row in rows if row.source == source] == list(range(last + 1))


def test_a_journal_keeps_what_was_acknowledged_wherever_the_power_goes() -> None:
    """Rows, segments, the durable mark, and the names of all directories above them."""
    assert cut_everywhere(record, check_journal, throws=3) > 50


def start_sidecar(root: Path, promises: Promises) -> None:
    DataDir(root / "data").close()
    with open_journal(root) as writer:
        write(writer, 1)
        writer.sync()
        note(writer, promises)


def test_a_data_directory_that_was_made_is_on_disk() -> None:
    """What is acknowledged in it is not lost with its name."""
    assert cut_everywhere(start_sidecar, check_journal) > 15


def take_up(root: Path, promises: Promises) -> None:
    """The next process: what it finds it calls durable."""
    durable_data_dir(root)
    with open_journal(root) as writer:
        note(writer, promises)


def test_what_a_restart_found_is_on_disk_before_it_is_promised() -> None:
    """The first process was killed between its write and its sync: the second finds whole
    records that were never synced, and tells producers that it has them."""
    assert kill_everywhere(record, take_up, check_journal, throws=3) > 50


def go_on_without_mark(root: Path, promises: Promises) -> None:
    """A journal that was copied without its mark is opened, and goes on."""
    durable_data_dir(root)
    with JournalWriter(run_dir(root) / "journal") as writer:
        write(writer, 2)
        writer.sync()
    (run_dir(root) / "journal" / MARK_NAME).unlink()
    sync_directory(run_dir(root) / "journal")
    with JournalWriter(run_dir(root) / "journal") as writer:
        for _ in range(4):
            write(writer, 1)
        writer.sync()
        note(writer, promises)


def test_a_mark_that_was_missing_is_on_disk_before_a_row_is_written() -> None:
    """Without it a later block of an unfinished write would look like a record behind damage,
    and the events before that block would count as had."""
    assert cut_everywhere(go_on_without_mark, check_journal, throws=16) > 15


# --- the cut tail


def tear(root: Path, promises: Promises) -> None:
    durable_data_dir(root)
    with open_journal(root) as writer:
        write(writer, 2)
        writer.sync()
        note(writer, promises)
    path = segments(run_dir(root) / "journal")[0].path
    with path.open("ab") as file:
        file.write(b"torn" * 40)
    sync_file(path)
    promises["torn"] = True


def cut_tail(root: Path, promises: Promises) -> None:
    tear(root, promises)
    with open_journal(root) as writer:
        note(writer, promises)


def check_tail(root: Path, promises: Promises) -> None:
    """It is saved beside before it is cut, in the story or when it is opened for the check."""
    check_journal(root, promises)
    quarantine = run_dir(root) / "quarantine"
    saved = b"".join(p.read_bytes() for p in sorted(quarantine.glob("*.tail*")))
    if promises.get("torn"):
        assert b"torn" * 40 in saved


def test_a_torn_tail_is_on_disk_elsewhere_before_it_is_cut() -> None:
    """With the name of the directory in which it is kept."""
    assert cut_everywhere(cut_tail, check_tail) > 15


# --- cursors


def commit(root: Path, promises: Promises) -> None:
    for row in (3, 7):
        with Cursor(root / "out" / "deep", "lines", RUN) as cursor:
            assert cursor.position.row >= promises.get("row", 0)
            cursor.commit(Position(row, {"length": row}))
            promises["row"] = row


def check_cursor(root: Path, promises: Promises) -> None:
    with Cursor(root / "out" / "deep", "lines", RUN) as cursor:
        assert cursor.position.row >= promises.get("row", 0)
        assert cursor.position.state.get("length", 0) == cursor.position.row


def test_a_commit_is_kept_wherever_the_power_goes() -> None:
    """Also the first, for which the directory was made."""
    assert cut_everywhere(commit, check_cursor) > 8


# --- a removed run


def remove(root: Path, promises: Promises) -> None:
    durable_data_dir(root)
    with open_journal(root) as writer:
        write(writer, 3)
        writer.sync()
        promises["uuid"] = segments(writer.directory)[0].path.read_bytes()[16:32].hex()
    info = {"run_id": RUN, "state": "ended", "endings": 1, "as_of_row": 3}
    cursors = run_dir(root) / "cursors"
    with Cursor(run_dir(root), "lines", RUN) as cursor:
        cursor.commit(Position(3, {}), is_done=True, ending=1)
    write_json(run_dir(root) / "run.json", info)
    promises["is_recorded"] = True
    assert cursors.is_dir()
    assert Retention(run_dir(root).parent, ("lines",), 1).sweep() == [RUN]
    promises["is_removed"] = True


def check_removed(root: Path, promises: Promises) -> None:
    """The whole run is there, or none of it and its tombstone."""
    data = root / "data"
    if not promises.get("is_recorded"):
        return
    if run_dir(root).is_dir():
        assert not promises.get("is_removed")
        check_journal(root, {"rows": 3, "rank0": 2})
        assert read_json(run_dir(root) / "run.json") and read_tombstone(data, RUN) is None
    else:
        tombstone = read_tombstone(data, RUN)
        assert tombstone is not None and tombstone.uuids == (promises["uuid"],)
        assert [entry.durable_seq for entry in tombstone.streams] == [2]
        Retention(data / "runs", ("lines",), 0).clear_leftovers()
        assert list((data / "runs").iterdir()) == []


def test_a_run_is_removed_whole_or_not_at_all() -> None:
    """And never without its tombstone."""
    assert cut_everywhere(remove, check_removed, throws=3) > 30


# --- TensorBoard


def tensorboard_rows() -> list[Any]:
    made = RowMaker()
    made.start()
    for step in range(12):
        made.metrics(step, {"train/loss": step / 4}, session=f"s{step // 6}")
        made.metrics(step, {"rank/1/step_seconds": 0.5}, "rank1")
    return made.rows


def show(root: Path, promises: Promises) -> None:
    """Sink processes one after the other, each of which commits several times."""
    out, rows = root / "run", tensorboard_rows()
    for upto in (9, len(rows)):
        with Cursor(out, "tensorboard", RUN) as cursor:
            sink, found = helpers_tensorboard.sink_in(out), cursor.position
            first = sink.open(found)
            for at in range(first, upto, 4):
                sink.write(rows[at : min(at + 2, upto)])
                sink.flush()
                sink.write(rows[at + 2 : min(at + 4, upto)])
                cursor.commit(sink.commit())
            if upto < len(rows):
                sink.write(rows[upto : upto + 2])
                sink.flush()  # and is gone
            sink.close()
            # One that was only found there is no promise: older is harmless.
            if cursor.position != found:
                promises["row"] = cursor.position.row


def check_shown(root: Path, promises: Promises, caplog: pytest.LogCaptureFixture) -> None:
    """A fresh process goes on from the commit, and every point is there once."""
    out, rows = root / "run", tensorboard_rows()
    with Cursor(out, "tensorboard", RUN) as cursor:
        assert cursor.position.row >= promises.get("row", 0)
        caplog.clear()
        sink = helpers_tensorboard.sink_in(out)
        first = sink.open(cursor.position)
        # All anew from row 0 would be right as well, and would hide what is not synced.
        assert [r.getMessage() for r in caplog.records] == []
        sink.write(rows[first:])
        sink.finish("finished", 0)
        sink.close()
    found = helpers_tensorboard.scalars(helpers_tensorboard.read_all(out))
    points = sorted((f.tag, f.step, f.value) for f in found if "/" in f.tag)
    losses = [(s, v) for tag, s, v in points if tag == "train/loss"]
    assert losses == [(step, step / 4) for step in range(12)]
    steps = [s for tag, s, _ in points if tag == "rank/1/step_seconds"]
    assert steps == list(range(12))


def test_event_files_hold_what_was_committed_wherever_the_power_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Their bytes, their names, and those of their directories."""
    caplog.set_level(logging.WARNING)

    calls = cut_everywhere(show, lambda root, said: check_shown(root, said, caplog), throws=2)

    assert calls > 40


def test_event_files_of_a_killed_sink_are_taken_over_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the next process cuts, or finds and relies on, it syncs first."""
    caplog.set_level(logging.WARNING)

    calls = kill_everywhere(
        show, show, lambda root, said: check_shown(root, said, caplog), throws=1
    )

    assert calls > 40


# --- W&B's files


def fragment(root: Path) -> Path:
    return root / "run" / "wandb" / f"offline-run-20260101_000000-{RUN}" / f"run-{RUN}.wandb"


def make_fragment(root: Path) -> None:
    """As the sink makes the directory of all fragments, and wandb-core that of one."""
    local_run(root).open(Spot(), None, 0)
    fragment(root).parent.mkdir()


def local_run(root: Path) -> LocalRun:
    return LocalRun(SinkContext(RUN, root / "run", RunFile(), {}), ".", SystemClock(), time.sleep)


def wandb_bytes(rows: range) -> bytes:
    return framed([history(row).SerializeToString() for row in rows])[0]


def confirm(root: Path, promises: Promises) -> None:
    """wandb-core writes and does not sync; what is vouched for is synced all the same."""
    path = fragment(root)
    make_fragment(root)
    confirmation = offline.Confirmation(path)
    written = 0
    for upto in (2, 5):
        with path.open("ab") as file:
            written += file.write(wandb_bytes(range(upto))[written:])
        for row in range(confirmation.row + 1, upto):
            confirmation.sent(row)
        promises["row"] = confirmation.read_back()


def there(root: Path) -> list[int]:
    path = fragment(root)
    return [row["_step"] for row in history_rows(path)] if path.exists() else []


def check_confirmed(root: Path, promises: Promises) -> None:
    count = promises.get("row", -1) + 1
    assert there(root)[:count] == list(range(count))


def test_a_row_that_was_read_back_is_on_disk() -> None:
    """Read is not synced, and neither are the names that lead to it."""
    assert cut_everywhere(confirm, check_confirmed, throws=12) > 4


def write_as_core(root: Path, promises: Promises) -> None:
    """wandb-core has written rows, and is gone before anybody has synced them."""
    make_fragment(root)
    with fragment(root).open("ab") as file:
        for at in range(0, len(whole := wandb_bytes(range(8))), 100):
            file.write(whole[at : at + 100])


def take_over(root: Path, promises: Promises) -> None:
    """The next sink finds rows in the file, and vouches for them."""
    run = local_run(root)
    run.open(Spot(), None, 0)
    for row in range(8):
        if fragment(root).exists() and row in there(root):
            run.take(row, Selected(history={"x": row}))
            part = run.commit(Spot(row + 1))
            promises["row"] = -1 if part is None else part.spot.row - 1


def test_rows_that_were_found_in_a_fragment_are_on_disk_before_they_count() -> None:
    """Read is not synced: another process wrote them, and may have just died."""
    assert kill_everywhere(write_as_core, take_over, check_confirmed) > 6


def mend(root: Path, promises: Promises) -> None:
    """A torn fragment is cut, then moved out of sight."""
    path = fragment(root)
    make_fragment(root)
    whole = wandb_bytes(range(30))
    path.write_bytes(whole + b"\x07" * 90)
    offline.sync_with_directories(path)
    promises["whole"] = whole
    (found,) = offline.read_fragments(path.parent.parent, RUN)
    offline.cut_torn(found)
    promises["is_cut"] = True
    offline.supersede(path.parent.parent, RUN)
    promises["is_away"] = True


def check_mended(root: Path, promises: Promises) -> None:
    if "whole" not in promises:
        return
    wandb_dir = fragment(root).parent.parent
    away = list(wandb_dir.glob(f"superseded-*/run-{RUN}.wandb"))
    left = offline.fragment_paths(wandb_dir, RUN)
    (path,) = away + left
    if promises.get("is_away"):
        assert left == []
    data = path.read_bytes()
    beside = list(path.parent.glob("*.torn-at-*"))
    assert data.startswith(promises["whole"])
    if promises.get("is_cut"):
        assert data == promises["whole"]
    if len(data) < len(promises["whole"]) + 90:
        assert [p.read_bytes() for p in beside] == [b"\x07" * 90]


def test_a_torn_fragment_is_saved_cut_and_moved_durably() -> None:
    """In that order."""
    assert cut_everywhere(mend, check_mended, throws=12) > 10
