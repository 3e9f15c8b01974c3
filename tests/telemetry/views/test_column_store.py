"""Kept columns: the same as those of the journal, or not used at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import files as files_module
from telemetry.views import column_reading, column_store
from telemetry.views.column_store import read_kept
from telemetry.views.columns import RunColumns, keep_columns, read_columns
from tests.shared.strategies import events
from tests.telemetry.views.journals import Said, started, steps, write_journal, write_run_file

SOURCES = ("rank0", "rank1", "rank0.worker1", "hardware:node1", "sidecar")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part that is read becomes a chunk of its own."""
    monkeypatch.setattr(column_reading, "CHUNK_ROWS", 1)


def everything(columns: RunColumns) -> dict[str, Any]:
    """All that columns tell of a run, in values that can be compared; NaN equals NaN."""
    told: dict[str, Any] = {
        "rows": columns.rows,
        "marks": columns.marks,
        "sessions": columns.sessions,
        "left_out": columns.left_out,
    }
    for source in columns.sources():
        told[source] = columns.last_texts(source)
        for name in columns.names(source):
            told[source, name] = [column.tolist() for column in columns.series(name, source)]
            told[source, name, "texts"] = columns.texts(name, source)
    for source in SOURCES:
        for kind in ("train", "val"):
            told[source, kind] = [c.tolist() for c in columns.rows_of_kind(kind, source)]
        for name in columns.histogram_names():
            told[source, name, "histograms"] = [
                (h.step, h.wall_s, h.edges.tolist(), h.counts.tolist(), h.superseded)
                for h in columns.histograms(name, source)
            ]
    return {key: repr(value) for key, value in told.items()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 30 steps, kept as three chunks."""
    run = tmp_path / "r"
    for first in (1, 11, 21):
        said = Said([*([started()] if first == 1 else []), *steps(first, first + 9)], first)
        write_journal(run, [said])
        keep_columns(run).close()
    assert [c.head.next_row for c in read_kept(run)] == [11, 21, 31]
    return run


def files(run: Path) -> list[Path]:
    return sorted((run / "columns").glob("*.chunk"))


def from_journal(run: Path) -> dict[str, Any]:
    """All that the journal alone tells."""
    with mock.patch.object(column_reading, "read_kept", lambda _: []):
        return everything(read_columns(run))


PARTS = st.lists(
    st.builds(
        Said,
        events=st.lists(events(), min_size=1, max_size=6),
        at_s=st.integers(0, 1000).map(float),
        source=st.sampled_from(SOURCES),
        session=st.sampled_from(["s1", "s2"]),
        is_late=st.booleans(),
        apart_s=st.just(1.0),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(parts=PARTS)
def test_columns_are_the_same_from_kept_ones_and_from_the_journal(parts: list[Said]) -> None:
    """Of any journal, however many pieces it was kept in, and for one who followed it."""
    with tempfile.TemporaryDirectory() as place, no_syncs():
        run = write_journal(Path(place) / "r", parts[:1])
        with read_columns(run) as following:
            for part in parts[1:]:
                write_journal(run, [part])
                keep_columns(run).close()
                following.update()
            followed = everything(following)
        keep_columns(run).close()

        assert read_kept(run)[-1].head.next_row == sum(len(part.events) for part in parts)
        assert everything(read_columns(run)) == from_journal(run) == followed


@contextlib.contextmanager
def no_syncs() -> Iterator[None]:
    """Many small journals, and none that a power cut may meet."""
    with mock.patch.object(os, "fsync"), mock.patch.object(os, "fdatasync"):
        yield


def test_a_reader_takes_kept_rows_from_their_files(run: Path) -> None:
    """The journal is read only behind them."""
    write_journal(run, [Said(steps(31, 33), 31)])

    columns = read_columns(run)

    assert columns._reading.kept == 3 and len(columns._reading.chunks) == 4
    assert columns.series("train/loss").step.tolist() == list(range(1, 34))
    assert everything(columns) == from_journal(run)


def _other_journal(run: Path) -> None:
    shutil.rmtree(run / "journal")
    write_journal(run, [Said([started(), *steps(1, 40)])])


def _changed_crc(run: Path) -> None:
    """Give the last record another event, with checksums that are right."""
    last = read_kept(run)[-1].head.last_record
    assert last is not None
    segment = run / "journal" / f"{0:020}.seg"
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1  # the last bit of the last number
    at = last.offset + 32
    struct.pack_into("<I", data, at, zlib.crc32(data[last.offset + 40 :]))
    struct.pack_into("<I", data, at + 4, zlib.crc32(data[last.offset : at + 4]))
    segment.write_bytes(data)


def _cut(run: Path) -> None:
    path = files(run)[1]
    os.truncate(path, path.stat().st_size - 1)


def _empty(run: Path) -> None:
    files(run)[0].write_bytes(b"")


def _gone(run: Path) -> None:
    files(run)[1].unlink()


def _newer_version(run: Path) -> None:
    data = bytearray(files(run)[0].read_bytes())
    data[8] += 1
    files(run)[0].write_bytes(data)


def _a_directory(run: Path) -> None:
    files(run)[2].unlink()
    (run / "columns" / f"{21:020}.chunk").mkdir()


def _a_short_copy(run: Path) -> None:
    """The mark and the columns were copied whole, the journal not yet."""
    segment = run / "journal" / f"{0:020}.seg"
    os.truncate(segment, segment.stat().st_size - 1)


def _half_written(run: Path) -> None:
    (run / "columns" / f".{31:020}.chunk.tmp").write_bytes(b"TELCOLS")


def _all_gone(run: Path) -> None:
    shutil.rmtree(run / "columns")


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (_other_journal, 0),
        (_changed_crc, 2),
        (_cut, 1),
        (_empty, 0),
        (_gone, 1),
        (_newer_version, 0),
        (_a_directory, 2),
        (_half_written, 3),
        (_a_short_copy, 2),
        (_all_gone, 0),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_kept_columns_that_do_not_fit_are_not_used(run: Path, change: Any, kept: int) -> None:
    """The journal stands in for them and all behind them; the next writer makes them good."""
    change(run)

    assert len(read_kept(run)) == kept
    assert everything(read_columns(run)) == from_journal(run)
    with keep_columns(run) as columns:
        assert everything(columns) == from_journal(run)
    if change not in (_a_directory, _a_short_copy):
        assert read_kept(run)[-1].head.next_row == read_columns(run).rows


@pytest.mark.parametrize("number", range(3))
def test_a_damaged_array_is_found_and_replaced_by_the_journal(run: Path, number: int) -> None:
    """The head of the chunk is whole, so that it is found only where a series is asked for."""
    path = files(run)[number]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert len(read_kept(run)) == 3

    with read_columns(run) as columns:
        assert everything(columns) == from_journal(run)
    assert len(read_kept(run)) == 3
    with keep_columns(run) as columns:
        assert everything(columns) == from_journal(run)
    assert len(files(run)) == 1  # made anew, in one piece
    with read_columns(run) as columns:
        assert everything(columns) == from_journal(run) and columns._reading.kept == 1


def test_columns_deleted_while_they_are_open_come_from_the_journal(run: Path) -> None:
    with read_columns(run) as columns:
        shutil.rmtree(run / "columns")
        assert columns.series("train/loss").step.tolist() == list(range(1, 31))


@pytest.mark.parametrize("point", ["write", "fsync", "rename", "sync of the name"])
def test_a_writer_killed_at_any_point_leaves_whole_chunks(run: Path, point: str) -> None:
    """Before the file is whole, before its name, and behind it."""
    write_journal(run, [Said(steps(31, 40), 31)])
    if (child := os.fork()) == 0:
        try:
            _keep_and_die(run, point)
        finally:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(read_kept(run)) == (4 if point == "sync of the name" else 3)
    assert everything(read_columns(run)) == from_journal(run)
    with keep_columns(run):
        assert len(read_kept(run)) == 4


def _keep_and_die(run: Path, point: str) -> None:
    def die(*_: object, **__: object) -> None:
        os._exit(9)

    def write_half(path: Path, data: bytes) -> None:
        path.with_name(f".{path.name}.tmp").write_bytes(data[: len(data) // 2])
        os._exit(9)

    target, name, what = {
        "write": (column_store, "write_atomically", write_half),
        "fsync": (os, "fsync", die),
        "rename": (Path, "replace", die),
        "sync of the name": (files_module, "sync_directory", die),
    }[point]
    with mock.patch.object(target, name, what):
        keep_columns(run)


def test_nothing_is_kept_on_a_disk_without_room(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there stays in use."""
    room = SimpleNamespace(total=1 << 40, used=0, free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    write_journal(run, [Said(steps(31, 40), 31)])

    with keep_columns(run) as columns:
        assert everything(columns) == from_journal(run)
    assert len(files(run)) == 3
    with keep_columns(run, min_free_bytes=0):
        assert len(files(run)) == 4


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(run: Path) -> None:
    write_journal(run, [Said(steps(31, 40), 31)])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with mock.patch.object(os, "fsync", fail), keep_columns(run) as columns:
        assert everything(columns) == from_journal(run)
    assert len(list((run / "columns").iterdir())) == 3


def test_one_writer_at_a_time_keeps_and_the_other_reads_on(run: Path) -> None:
    """Also where the first is frozen with the lock in its hand: nobody waits for it."""
    write_journal(run, [Said(steps(31, 40), 31)])
    fd = os.open(run / "columns", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)

    with keep_columns(run) as columns:
        assert everything(columns) == from_journal(run)
    assert len(files(run)) == 3
    os.close(fd)
    with keep_columns(run):
        assert len(files(run)) == 4


def test_a_writer_that_was_overtaken_adds_nothing(run: Path) -> None:
    """Two that read the same rows keep them once, and further ones where they belong."""
    store = column_store.ColumnStore(run)
    write_journal(run, [Said(steps(31, 40), 31)])
    with keep_columns(run) as columns:
        with mock.patch.object(column_reading, "read_kept", lambda _: []):
            chunk = read_columns(run)._reading.chunks[0]
        assert store.keep(chunk) is None
        assert len(read_kept(run)) == 4 and everything(columns) == from_journal(run)


def test_a_run_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    run = write_journal(tmp_path / "r", [Said([started(), *steps(1, 3)])])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with mock.patch.object(Path, "mkdir", refuse), keep_columns(run) as columns:
        assert columns.series("train/loss").step.tolist() == [1, 2, 3]
    assert not (run / "columns").exists()


def test_damaged_rows_are_not_kept(tmp_path: Path) -> None:
    """A copy that is not whole yet may have them later."""
    said = [Said([started(), *steps(1, 3)]), Said(steps(4, 5), 9)]
    run = write_journal(tmp_path / "r", said)
    segment = run / "journal" / f"{0:020}.seg"
    data = bytearray(segment.read_bytes())
    data[data.index(b"train/loss")] ^= 1
    segment.write_bytes(data)

    with keep_columns(run) as columns:
        assert [m.kind for m in columns.marks] == ["damage"]
    assert not files(run)


def test_the_end_of_an_ended_run_is_kept_if_it_is_worth_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(column_reading, "CHUNK_ROWS", 1000)
    monkeypatch.setattr(column_reading, "REST_ROWS_MIN", 10)
    run = write_journal(tmp_path / "r", [Said([started(), *steps(1, 8)])])
    write_run_file(run, state="running")
    with keep_columns(run) as columns:
        assert not files(run)
        write_journal(run, [Said(steps(9, 9), 9)])
        columns.update()
        assert not files(run)
        write_run_file(run)
        columns.update()
        assert len(read_kept(run)) == 1
