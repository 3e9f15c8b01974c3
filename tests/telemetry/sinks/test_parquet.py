"""The parquet sink: typed, exactly once, and readable by anybody."""

from __future__ import annotations

import functools
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from shared.events import MessageLogged
from telemetry.commands.replay import replay
from telemetry.errors import EXIT_BACKLOG, EXIT_OK
from telemetry.run_dir import CursorFile, RunDir, load
from telemetry.sinks.base import START, Position, SinkUnavailable
from telemetry.sinks.cursor import Cursor
from telemetry.sinks.parquet import ParquetSink
from tests.fakes import ManualClock
from tests.faults.crash_points import cut_everywhere, kill_everywhere
from tests.telemetry.monitor.runs import training, write_rows, write_run_file
from tests.telemetry.sinks.helpers_parquet import context, files, mixed, read
from tests.telemetry.sinks.helpers_rows import START_WALL_NS, RowMaker
from tests.telemetry.waiting import wait_until


def written(out_dir: Path, made: RowMaker) -> Position:
    """The run in one go, from where the files are."""
    sink = ParquetSink(context(out_dir))
    sink.open(START)
    sink.write(made.rows)
    position = sink.finish("finished", 0)
    sink.close()
    return position


def test_values_have_their_types_and_their_place(tmp_path: Path) -> None:
    """A line is one value: whose, when, at which step; the run is in the directory's name."""
    made = RowMaker()
    made.start()
    made.metrics(7, {"train/loss": 2.5, "train/training_stage": "warmup", "is_new": True})

    position = written(tmp_path, made)

    assert position.row == 2
    at = datetime.fromtimestamp(START_WALL_NS / 1e9 + 1, UTC)
    lines = read(
        tmp_path, "run, source, session, row, kind, step, time, name, value, integer, text"
    )
    assert lines[1:] == [
        ("r", "rank0", "s1", 1, "train", 7, at, "is_new", 1.0, None, None),
        ("r", "rank0", "s1", 1, "train", 7, at, "train/loss", 2.5, None, None),
        ("r", "rank0", "s1", 1, "train", 7, at, "train/training_stage", None, None, "warmup"),
    ]
    with duckdb.connect() as database:
        (path,) = files(tmp_path)
        described = database.execute(f"DESCRIBE SELECT * FROM '{path}'").fetchall()
        codecs = database.execute(f"SELECT DISTINCT compression FROM parquet_metadata('{path}')")
        assert codecs.fetchall() == [("ZSTD",)]
        told = dict(
            database.execute(f"SELECT key, value FROM parquet_kv_metadata('{path}')").fetchall()
        )
    assert {name: kind for name, kind, *_ in described} == {
        "source": "VARCHAR", "session": "VARCHAR", "row": "BIGINT", "late": "BOOLEAN",
        "kind": "VARCHAR",
        "step": "BIGINT", "time": "TIMESTAMP WITH TIME ZONE", "name": "VARCHAR",
        "value": "DOUBLE", "integer": "BIGINT", "text": "VARCHAR", "run": "VARCHAR",
    }  # fmt: skip
    assert told[b"run"] == b"r" and told[b"first_row"] == b"0" and told[b"next_row"] == b"2"


def test_odd_values_come_back_as_they_were(tmp_path: Path) -> None:
    """NaN is a value, and not a hole; whole numbers above 2^53 are exact; a text is any text."""
    odd: dict[str, Any] = {
        "nan": math.nan, "inf": math.inf, "big": 2**53 + 1, "least": -(2**63), "zero": 0,
        "no": False, "text": "\x1b[31m\x00'\u202e🙂", "empty": "", "run='x'/..": 1.0,
    }  # fmt: skip
    made = RowMaker()
    made.metrics(None, odd)

    written(tmp_path, made)

    found = {name: values for name, *values in read(tmp_path, "name, value, integer, text, step")}
    assert math.isnan(found["nan"][0]) and found["inf"][0] == math.inf
    assert found["big"][1] == 2**53 + 1 and found["least"][1] == -(2**63)
    assert found["zero"] == [0.0, 0, None, None] and found["no"] == [0.0, None, None, None]
    assert found["text"] == [None, None, odd["text"], None] and found["empty"][2] == ""
    assert found.keys() == odd.keys()


def test_a_run_whose_id_is_a_number_or_a_day_keeps_it(tmp_path: Path) -> None:
    """The partition is a text for who asks for one."""
    for run_id in ("0042", "2026-07-31"):
        sink = ParquetSink(context(tmp_path, run_id))
        sink.open(START)
        sink.write(mixed(1).rows)
        sink.finish(None, None)

    assert {run for (run,) in read(tmp_path, "run")} == {"0042", "2026-07-31"}


def test_every_event_is_there_once_however_it_came_to_be_written(tmp_path: Path) -> None:
    """Files of any size say the same; hardware, gaps, messages and the rest among it."""
    made = mixed(40)
    written(tmp_path / "whole", made)
    clock = ManualClock()
    sink = ParquetSink(context(tmp_path / "parts"), lambda: clock.monotonic_ns() / 1e9)
    sink.open(START)
    for at in range(0, len(made.rows), 9):
        sink.write(made.rows[at : at + 9])
        clock.advance(200)
        sink.commit()
    sink.finish("finished", 0)

    assert len(files(tmp_path / "parts")) > 5 and len(files(tmp_path / "whole")) == 1
    assert read(tmp_path / "parts") == read(tmp_path / "whole")
    rows_of_files = [covered(path) for path in files(tmp_path / "parts")]
    assert [int(path.stem) for path in files(tmp_path / "parts")] == [a for a, _ in rows_of_files]
    assert [0, *(end for _, end in rows_of_files)] == [
        *(first for first, _ in rows_of_files), len(made.rows),
    ]  # fmt: skip
    kinds = {kind for (kind,) in read(tmp_path / "whole", "kind")}
    assert kinds == {
        "train", "custom", "hardware", "run_started", "histogram", "message", "gap", "alert",
        "run_finished",
    }  # fmt: skip
    (config,) = read(tmp_path / "whole", "text ->> '$.config.odd'", "kind = 'run_started'")
    assert config == ("Infinity",)


def covered(path: Path) -> tuple[int, int]:
    """The rows that a file says it holds."""
    with duckdb.connect() as database:
        found = database.execute(f"SELECT key, value FROM parquet_kv_metadata('{path}')").fetchall()
    told = {bytes(key): int(value) for key, value in found if bytes(key).endswith(b"_row")}
    return told[b"first_row"], told[b"next_row"]


def test_rows_wait_for_their_file_five_minutes_and_not_when_the_sink_is_to_stop(
    tmp_path: Path,
) -> None:
    """A file a second would be a hundred thousand a day."""
    clock, stops = ManualClock(), [False, False, True]
    made = mixed(3)
    sink = ParquetSink(
        context(tmp_path, wait=lambda _: stops.pop(0)), lambda: clock.monotonic_ns() / 1e9
    )
    sink.open(START)
    sink.write(made.rows[:5])

    assert sink.commit() == START and not files(tmp_path)
    clock.advance(299)
    assert sink.commit() == START
    clock.advance(1)
    assert sink.commit().row == 5 and len(files(tmp_path)) == 1
    sink.write(made.rows[5:7])
    assert sink.commit().row == 7 and not stops


def test_files_of_another_version_are_written_anew(tmp_path: Path) -> None:
    """What the old rules made is not mixed with the new."""
    position = written(tmp_path, mixed(3))
    other = position._replace(state={**position.state, "version": "0"})
    sink = ParquetSink(context(tmp_path))

    first_row = sink.open(other)

    assert first_row == 0 and files(tmp_path) == []


def story(root: Path, promises: dict[str, Any]) -> None:
    """The runner's way through the sink, with a file for each part."""
    rows = mixed(1).rows
    with Cursor(root / "run", "parquet", "r") as cursor:
        sink = ParquetSink(context(root / "run"), lambda: 0.0)
        try:
            for at in range(sink.open(cursor.position), len(rows), 5):
                sink.write(rows[at : at + 5])
                sink._write_file()
                cursor.commit(sink.commit())
                promises["row"] = cursor.position.row
            cursor.commit(sink.finish("finished", 0), is_done=True)
        finally:
            sink.close()


def check(root: Path, promises: dict[str, Any]) -> None:
    """The files hold each row before the cursor once, and a second start makes it whole."""
    cursor = load(RunDir(root / "run").cursor("parquet"), CursorFile) or CursorFile()
    assert cursor.row >= promises.get("row", 0)
    story(root, {})
    with Cursor(root / "run", "parquet", "r") as at_end:
        assert at_end.position.row == len(mixed(1).rows)
    assert read(root / "run") == whole_run()


@functools.cache
def whole_run() -> list[tuple[Any, ...]]:
    with tempfile.TemporaryDirectory() as name:
        written(Path(name), mixed(1))
        return read(Path(name))


def test_a_power_cut_at_any_call_loses_and_doubles_nothing() -> None:
    """Every call that changes the disk is the last one, once."""
    assert cut_everywhere(story, check, throws=1) > 20


def test_a_kill_at_any_call_and_a_power_cut_after_the_next_start_lose_nothing() -> None:
    """What the first process left behind its position, the second removes."""
    assert kill_everywhere(story, story, check, throws=1) > 20


def recorded(directory: Path, steps: int = 2000) -> Path:
    run_dir = directory / "r"
    write_rows(run_dir, training(steps))
    write_run_file(run_dir, state="ended", status="finished", endings=1)
    return run_dir


def start(run_dir: Path, out_dir: Path, file_values: int = 300) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.telemetry.sinks.parquet_process"]
    return subprocess.Popen([*command, str(run_dir), str(out_dir), str(file_values)])


def cursor_row(out_dir: Path) -> int:
    return (load(RunDir(out_dir).cursor("parquet"), CursorFile) or CursorFile()).row


def test_kill_9_at_any_moment_loses_and_doubles_no_value(tmp_path: Path) -> None:
    """With files in flight, and once frozen before: no other run or sink waits for it."""
    dice = random.Random(4)
    run_dir = recorded(tmp_path)
    out_dir = tmp_path / "out"
    in_flight = 0
    for kill in range(4):
        # Files of another size each time: none takes the name of one that is left over.
        process = start(run_dir, out_dir, dice.randint(100, 400))
        wanted = len(files(out_dir)) + dice.randint(1, 3)
        wait_until(lambda p=process, n=wanted: len(files(out_dir)) >= n or p.poll() is not None)
        if kill == 1:
            process.send_signal(signal.SIGSTOP)
            assert replay([run_dir], "parquet", tmp_path / "beside", None) == EXIT_OK
        process.kill()
        process.wait()
        last = files(out_dir)[-1]
        in_flight += int(last.stem) >= cursor_row(out_dir)

    assert start(run_dir, out_dir).wait(60) == 0

    assert in_flight > 0 and len(files(out_dir)) > 5
    everything = read(out_dir, "row, name, value, text")
    assert everything == read(tmp_path / "beside" / "r", "row, name, value, text")
    assert len(everything) == 1 + 3 * 2000 and cursor_row(out_dir) == 2001
    assert not list(out_dir.rglob("*.tmp"))


def test_a_full_disk_is_waited_for_and_made_up_for(tmp_path: Path) -> None:
    """Nothing half written is left, and the position has not moved."""
    made = mixed(3000)
    sink = ParquetSink(context(tmp_path))
    sink.open(START)
    sink.write(made.rows)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(SinkUnavailable, match="parquet files"):
            sink.finish("finished", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(SinkUnavailable, match="opened again"):
        sink.commit()
    written(tmp_path, made)
    assert left == []
    written(tmp_path / "whole", made)
    assert read(tmp_path) == read(tmp_path / "whole")


def test_a_failed_sync_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may not be on disk has no name that a reader knows."""

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    sink = ParquetSink(context(tmp_path))
    sink.open(START)
    sink.write(mixed(2).rows)
    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(SinkUnavailable, match="Input/output error"):
        sink.finish("finished", 0)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_replay_adds_nothing_the_second_time_and_is_what_the_live_sink_wrote(
    tmp_path: Path,
) -> None:
    """One function for both."""
    run_dir = recorded(tmp_path, 50)
    assert replay([run_dir], "parquet", tmp_path / "out", None) == EXIT_OK
    once = read(tmp_path / "out" / "r")
    paths = {path: path.stat().st_mtime_ns for path in files(tmp_path / "out" / "r")}

    assert replay([run_dir], "parquet", tmp_path / "out", None) == EXIT_OK

    assert read(tmp_path / "out" / "r") == once and len(once) == 1 + 3 * 50
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path / "out" / "r")} == paths
    assert not (run_dir / "parquet").exists()


def test_without_duckdb_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run stays in the journal until it can be written."""
    for module in [name for name in sys.modules if name.startswith("telemetry.sinks.parquet")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "duckdb", None)

    code = replay([recorded(tmp_path, 3)], "parquet", tmp_path / "out", None)

    assert code == EXIT_BACKLOG and "pip install 'training-telemetry[query]'" in caplog.text


def test_messages_with_a_hostile_text_are_json_that_any_reader_takes(tmp_path: Path) -> None:
    """A quote or a control character ends no field."""
    made = RowMaker()
    text = "he said \"\x1b]0;x\x07\" \\ \n {'$.level': 1}"
    made.append(MessageLogged(level="info", text=text))

    written(tmp_path, made)

    assert read(tmp_path, "text ->> '$.text', name") == [(text, "info")]


def test_a_file_of_many_values_is_written_at_once(tmp_path: Path) -> None:
    """Memory is bounded whatever the rate."""
    sink = ParquetSink(context(tmp_path), file_values_max=10)
    sink.open(START)

    sink.write(mixed(10).rows)

    assert len(files(tmp_path)) >= 5 and len(sink._table) < 10


def test_a_reader_of_another_make_finds_the_same_types_and_values(tmp_path: Path) -> None:
    """Arrow, which Polars, Spark and pandas read by, takes the run from the partition."""
    dataset = pytest.importorskip("pyarrow.dataset")
    written(tmp_path, mixed(5))

    table = dataset.dataset(tmp_path / "parquet", partitioning="hive", format="parquet").to_table()

    names = ["run", "row", "step", "name", "value", "integer", "text"]
    found = sorted(zip(*(table[name].to_pylist() for name in names), strict=True), key=str)
    ours = read(tmp_path, 'run, "row", step, name, value, integer, text')
    assert found == sorted(ours, key=str) and len(found) > 40
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["time"], types["value"], types["integer"], types["step"]) == (
        "timestamp[us, tz=UTC]", "double", "int64", "int64",
    )  # fmt: skip
