"""`query`: what it answers, what it refuses, and what it never touches."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from shared.events import AlertChanged, Gap, HistogramLogged, MessageLogged, MetricsLogged
from telemetry.cli import main
from telemetry.commands.replay import replay
from telemetry.journal.layout import segments
from telemetry.journal.writer import JournalWriter
from telemetry.run_dir import CursorFile, RunDir, load
from telemetry.sinks.base import SinkContext
from telemetry.sinks.delivery import Pace
from telemetry.sinks.parquet import ParquetSink, parquet_files
from telemetry.sinks.runner import Reporter, SinkJob, run_sink
from telemetry.views.columns import read_columns
from tests.telemetry.monitor.runs import training, write_rows, write_run_file
from tests.telemetry.sidecar_process import clean_env
from tests.telemetry.sinks.helpers_parquet import files
from tests.telemetry.test_inspect import damage
from tests.telemetry.test_inspect_forms import metrics, stepped
from tests.telemetry.waiting import wait_until


def asked(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, list[Any], str]:
    code = main(["query", *map(str, args), "--json"])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def whole(capsys: pytest.CaptureFixture[str], place: Path) -> list[Any]:
    code, lines, err = asked(capsys, 'FROM metrics ORDER BY "row", name', place)
    assert code == 0 and err == ""
    return lines


def run_of(data_dir: Path, steps: int = 20) -> Path:
    run_dir = data_dir / "runs" / "r"
    write_rows(run_dir, training(steps))
    write_run_file(run_dir, state="ended", status="finished", endings=1)
    return run_dir


def test_every_table_has_what_was_recorded(tmp_path, capsys) -> None:
    """With types of their own, and the place of each row."""
    run_dir = run_of(tmp_path, 3)
    said = [
        MessageLogged(level="warning", text="hot"),
        AlertChanged(name="gpu_xid", subject="gpu/0", severity="error", text="t", value=79),
        Gap(count=3, by_kind={"train": 3}, reason="queue full", unknown_ms=1.5),
        HistogramLogged(kind="quant", step=2, name="w", edges=[0, 1, float("inf")], counts=[3, 4]),
        MetricsLogged(kind="message", values={"not a message": 1.0}),
    ]
    write_rows(run_dir, said, session="s2")

    def one(table: str) -> dict[str, Any]:
        _, (line,), _ = asked(capsys, f"FROM {table}", tmp_path)
        assert line["run"] == "r"
        return line

    assert (one("messages")["level"], one("messages")["text"]) == ("warning", "hot")
    assert (one("alerts")["name"], one("alerts")["value"], one("alerts")["is_active"]) == (
        "gpu_xid", 79, True,
    )  # fmt: skip
    assert (one("gaps")["count"], one("gaps")["unknown_ms"]) == (3, 1.5)
    assert json.loads(one("gaps")["by_kind"]) == {"train": 3}
    assert (one("histograms")["edges"], one("histograms")["counts"]) == ([0, 1, "inf"], [3, 4])
    run = one("runs")
    assert (run["state"], run["step"], run["rows"], run["project"]) == ("finished", 3, 9, "p")
    _, lines, _ = asked(capsys, "SELECT kind, count(*) n FROM metrics GROUP BY kind", tmp_path)
    assert {line["kind"]: line["n"] for line in lines} == {"train": 9, "metrics:message": 1}


def test_sessions_and_superseded_rows_agree_with_the_columns_that_pages_show(
    tmp_path, capsys
) -> None:
    """One rule for what a restart did again."""
    run_dir = stepped(tmp_path)
    columns = read_columns(run_dir)
    series = columns.series("train/loss", "rank0")
    question = (
        "SELECT step, value, superseded FROM metrics WHERE name = 'train/loss' ORDER BY \"row\""
    )

    _, lines, _ = asked(capsys, question, tmp_path)
    _, starts, _ = asked(capsys, "FROM sessions ORDER BY first_row", tmp_path)

    assert [tuple(line.values()) for line in lines] == [
        (int(step), float(value), bool(is_over))
        for step, value, is_over in zip(series.step, series.value, series.superseded, strict=True)
    ]
    assert [line["superseded"] for line in lines] == [False] * 4 + [True, False]
    found = {(each.source, each.session): each for each in columns.sessions}
    assert len(starts) == len(found) == 4
    for start in starts:
        span = found[start["source"], start["session"]]
        assert (start["first_step"], start["last_step"]) == (span.first_step, span.last_step)
        assert start["seconds"] == pytest.approx(span.last_wall_s - span.first_wall_s)
        assert start["resumed_from_step"] == span.resumed_from_step


def test_parquet_and_journals_give_one_answer(tmp_path, capsys, monkeypatch) -> None:
    """All of it from files, a part of it, none of it, or the files alone, without a journal."""
    run_dir = run_of(tmp_path)
    from_journal = whole(capsys, tmp_path)
    assert replay([run_dir], "parquet", tmp_path / "out", None) == 0
    capsys.readouterr()
    job = SinkJob("parquet", run_dir, run_dir, False, {})
    assert run_sink(job, threading.Event(), Reporter(None)) == 0
    write_rows(run_dir, [metrics(99, 1.0)], session="s2")
    behind = whole(capsys, tmp_path)

    # What is taken from files is not read in the journal.
    (segment,) = segments(run_dir / "journal")
    monkeypatch.setattr("telemetry.query.recordings.JournalReader", None)
    from_files = whole(capsys, tmp_path / "out")

    assert len(from_journal) == 60 and from_files == from_journal
    assert behind[:-1] == from_journal and behind[-1]["step"] == 99
    assert segment.path.exists()


def test_files_that_no_cursor_covers_are_not_counted_twice(tmp_path, capsys) -> None:
    """A sink that was killed between its file and its cursor."""
    run_dir = run_of(tmp_path)

    def make(_: str, context: SinkContext) -> ParquetSink:
        return ParquetSink(context, file_values_max=10)

    job = SinkJob("parquet", run_dir, run_dir, False, {}, make, Pace(write_rows=5))
    run_sink(job, threading.Event(), Reporter(None))
    expected = whole(capsys, tmp_path)
    cursor = load(RunDir(run_dir).cursor("parquet"), CursorFile)
    assert cursor is not None and len(files(run_dir)) > 4
    middle = int(files(run_dir)[2].stem)
    path = RunDir(run_dir).cursor("parquet")
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "row": middle, "done": False}))

    assert whole(capsys, tmp_path) == expected
    path.write_text(json.dumps({**told, "state": {**told["state"], "version": "0"}}))
    assert whole(capsys, tmp_path) == expected
    path.write_text(json.dumps({**told, "journal": "ff" * 16}))
    assert whole(capsys, tmp_path) == expected
    path.write_text("{")
    assert whole(capsys, tmp_path) == expected


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("selec 1", "syntax error"),
        ("SELECT * FROM nope", "nope does not exist"),
        ("SELECT nope FROM metrics", '"nope" not found'),
        ("SELECT 1; SELECT 2", "give one SELECT"),
        ("", "give one SELECT"),
        ("CREATE TABLE x AS SELECT 1", "give one SELECT"),
        ("DROP TABLE runs", "give one SELECT"),
        ("SET threads = 100", "give one SELECT"),
        ("COPY runs TO '{out}'", "give one SELECT"),
        ("ATTACH '{out}'", "give one SELECT"),
        ("INSTALL httpfs", "give one SELECT"),
        ("SELECT * FROM read_text('/etc/passwd')", "Cannot access file"),
        ("SELECT * FROM '/etc/passwd'", "passwd"),
        ("SELECT * FROM read_csv('/proc/self/environ')", "Cannot access file"),
        ("SELECT * FROM glob('/etc/*')", "Cannot access"),
        ("SELECT * FROM read_parquet('{out}/*.parquet')", "Cannot access"),
        ("SELECT getenv('HOME')", "getenv does not exist"),
    ],
)
def test_what_is_no_question_is_one_line_that_names_the_tables(
    tmp_path, capsys, question, text
) -> None:
    """And reaches nothing outside of the runs. Exit code 2."""
    run_of(tmp_path)
    out = tmp_path / "written"

    code, lines, err = asked(capsys, question.replace("{out}", str(out)), tmp_path)

    assert code == 2 and lines == [] and text in err and err.count("\n") == 1
    assert "tables are runs, metrics" in err or "give one SELECT" in err
    assert not out.exists()


def test_memory_is_bounded_and_the_way_is_said(tmp_path, capsys) -> None:
    """A question that needs more ends with a line, and not with the machine."""
    run_of(tmp_path)
    bounds = ("--memory-mb", 64, "--threads", 1)
    settings = "SELECT current_setting('memory_limit') m, current_setting('threads') t"

    code, lines, err = asked(capsys, "SELECT list(range) FROM range(50000000)", tmp_path, *bounds)

    assert code == 2 and lines == [] and "--memory-mb" in err and err.count("\n") == 1
    assert asked(capsys, settings, tmp_path, *bounds)[1] == [{"m": "61.0 MiB", "t": 1}]


def test_a_large_sort_goes_over_the_disk(tmp_path, capsys) -> None:
    """In the directory for temporary files, although no other file can be reached."""
    run_of(tmp_path)
    question = "SELECT count(*) n FROM (SELECT * FROM range(8000000) ORDER BY hash(range) OFFSET 1)"

    code, lines, err = asked(
        capsys, question.replace("count(*) n", "max(range) n"), tmp_path, "--memory-mb", 100
    )

    assert (code, err) == (0, "") and lines[0]["n"] > 7_000_000


def test_the_forms_of_an_answer(tmp_path, capsys) -> None:
    """A table for people, CSV and JSON for programs; holes and odd numbers in each."""
    run_of(tmp_path)
    question = (
        "SELECT 1.5::DOUBLE AS a, NULL AS b, 'x,\"y' AS c, 'nan'::DOUBLE AS d, [1, 2] AS e,"
        " TIMESTAMPTZ '2026-07-31 12:00:00+02' AS f, 2::DECIMAL(5,1) AS a, BLOB 'ab' AS g,"
        " DATE '2026-07-31' AS h, INTERVAL 90 SECOND AS i"
    )

    assert main(["query", question, str(tmp_path)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert main(["query", question, str(tmp_path), "--csv"]) == 0
    names, values = csv.reader(io.StringIO(capsys.readouterr().out))
    _, (line,), _ = asked(capsys, question, tmp_path)

    assert table[1].split() == ["a", "b", "c", "d", "e", "f", "a_1", "g", "h", "i"]
    assert 'x,"y' in table[3] and "2026-07-31T10:00:00Z" in table[3]
    assert names[:3] == ["a", "b", "c"] and values[:4] == ["1.5", "", 'x,"y', "nan"]
    assert line == {
        "a": 1.5, "b": None, "c": 'x,"y', "d": "nan", "e": [1, 2], "f": "2026-07-31T10:00:00Z",
        "a_1": 2.0, "g": "6162", "h": "2026-07-31", "i": 90.0,
    }  # fmt: skip


def test_a_table_is_cut_and_says_so_and_controls_no_terminal(tmp_path, capsys) -> None:
    """Names from a producer are escaped."""
    run_dir = run_of(tmp_path)
    write_rows(run_dir, [metrics(1, 1.0, "a\x1b[2J\u202e")], session="s2")

    assert main(["query", "SELECT name FROM metrics WHERE step = 1", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert main(["query", "SELECT * FROM range(1500)", str(tmp_path)]) == 0
    long = capsys.readouterr()

    assert "a\\x1b[2J\\u202e" in out and "\x1b" not in out
    assert " 999 " in long.out and " 1000 " not in long.out and "first 1,000 lines" in long.err


def test_a_run_that_is_being_written_is_answered_up_to_what_is_on_disk(tmp_path, capsys) -> None:
    """And its writer is not disturbed."""
    run_dir = run_of(tmp_path, 3)
    write_run_file(run_dir, state="running")
    with JournalWriter(run_dir / "journal") as writer:
        before = writer.next_row
        assert len(whole(capsys, tmp_path)) == 9
        assert writer.next_row == before


def test_damage_is_said_and_the_rest_is_answered(tmp_path, capsys) -> None:
    """Exit code 1, as of inspect and replay; a run that is only half copied, too."""
    run_dir = run_of(tmp_path, 3)
    write_rows(run_dir, [metrics(4, 1.0)], session="s2")
    write_rows(run_dir, [metrics(5, 1.0)], session="s3")
    (segment,) = segments(run_dir / "journal")
    data = segment.path.read_bytes()
    at = [each.start() for each in re.finditer(rb"\x1e\x7e", data)]
    damage(run_dir, len(data) - at[-4] - 60)
    other = tmp_path / "runs" / "half"
    shutil.copytree(run_dir, other)
    segments(other / "journal")[0].path.write_bytes(b"\0" * 30)

    code, lines, err = asked(capsys, "SELECT count(*) n FROM metrics WHERE run = 'r'", tmp_path)

    assert code == 1 and lines[0]["n"] == 10
    assert "run r: rows" in err and "can't be read" in err and "run half" in err


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "there is no"),
        (lambda path: path.mkdir(), "has no recorded run in it"),
        (lambda path: path.write_text("x"), "is a file"),
    ],
)
def test_a_place_without_runs_is_one_clear_line(tmp_path, capsys, make, text) -> None:
    """Exit code 2."""
    make(tmp_path / "d")

    code, lines, err = asked(capsys, "FROM runs", tmp_path / "d")

    assert code == 2 and lines == [] and text in err and err.count("\n") == 1


def test_a_data_directory_without_runs_has_empty_tables(tmp_path, capsys) -> None:
    """Nothing was recorded yet: that is an answer."""
    (tmp_path / "runs").mkdir()

    assert asked(capsys, "SELECT count(*) n FROM metrics", tmp_path) == (0, [{"n": 0}], "")
    assert asked(capsys, "FROM runs", tmp_path) == (0, [], "")


def test_two_recordings_of_one_run_are_not_mixed(tmp_path, capsys) -> None:
    """The same place twice is one."""
    run_dir = run_of(tmp_path / "a", 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    code, _, err = asked(capsys, "FROM runs", tmp_path / "a", tmp_path / "b")

    assert code == 2 and "two recordings of one run" in err
    assert len(whole(capsys, run_dir)) == 9
    assert asked(capsys, "FROM runs", run_dir, tmp_path / "a")[0] == 0


def test_nothing_recorded_is_touched_and_nothing_is_left(tmp_path, capsys, monkeypatch) -> None:
    """A directory that can't be written will do; the temporary one is gone at the end."""
    run_dir = run_of(tmp_path / "data")
    run_sink(SinkJob("parquet", run_dir, run_dir, False, {}), threading.Event(), Reporter(None))
    spill = tmp_path / "tmp"
    spill.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spill))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    for path in before:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        assert len(whole(capsys, tmp_path / "data")) == 60
        asked(capsys, "selec", tmp_path / "data")
    finally:
        for path in before:
            path.chmod(path.stat().st_mode | 0o200)

    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before
    assert list(spill.iterdir()) == []


def test_a_question_about_runs_alone_reads_no_journal(tmp_path, capsys, monkeypatch) -> None:
    """Of ten thousand runs that would take a while."""
    run_of(tmp_path)
    monkeypatch.setattr("telemetry.query.database.rows_of", None)

    assert asked(capsys, "SELECT step, loss FROM runs", tmp_path) == (
        0, [{"step": 20, "loss": 9.8}], "",
    )  # fmt: skip


def test_ctrl_c_ends_a_long_question(tmp_path) -> None:
    """Exit code 130, no traceback, and no directory stays behind."""
    run_of(tmp_path / "data")
    (tmp_path / "tmp").mkdir()
    question = "SELECT count(*) FROM range(9999999) a, range(9999999) b WHERE a.range + b.range < 0"
    with subprocess.Popen(
        [sys.executable, "-m", "telemetry", "query", question, str(tmp_path / "data")],
        stderr=subprocess.PIPE, text=True, env=clean_env(TMPDIR=str(tmp_path / "tmp")),
    ) as process:  # fmt: skip
        try:
            wait_until(lambda: list((tmp_path / "tmp").glob("telemetry-query-*/runs.duckdb")))
            # Its own start takes less: it is at work on the question.
            wait_until(lambda: _cpu_s(process.pid) > 3.0)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == 130 and err == ""
    assert list((tmp_path / "tmp").iterdir()) == []


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_without_duckdb_one_line_says_what_to_install(tmp_path, capsys, monkeypatch) -> None:
    """Exit code 2."""
    for module in [
        m for m in sys.modules if m.startswith(("telemetry.query", "telemetry.sinks.p"))
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "duckdb", None)

    code, _, err = asked(capsys, "FROM runs", run_of(tmp_path))

    assert code == 2 and "pip install 'training-telemetry[query]'" in err and err.count("\n") == 1


def test_limits_out_of_range_are_named(tmp_path, capsys) -> None:
    """With the range."""
    assert asked(capsys, "FROM runs", tmp_path, "--memory-mb", 1)[0] == 2
    assert asked(capsys, "FROM runs", tmp_path, "--threads", 0)[2].count("from 1 to 256") == 1


def test_a_path_with_odd_characters_is_read(tmp_path, capsys) -> None:
    """A quote in a path ends no SQL; a star is no pattern."""
    place = tmp_path / "it's * [a] 'place'"
    run_dir = run_of(place)
    run_sink(SinkJob("parquet", run_dir, run_dir, False, {}), threading.Event(), Reporter(None))

    assert len(files(run_dir)) == 1 and len(whole(capsys, place)) == 60
    assert parquet_files.quoted("a'b") == "'a''b'"
