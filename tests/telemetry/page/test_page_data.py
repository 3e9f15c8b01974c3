"""The page's answers: values that charts draw, and words where there is nothing to draw."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.events import MetricsLogged
from telemetry.journal.writer import JournalWriter
from telemetry.page.open_runs import OpenRuns
from telemetry.page.problems import NotFound, StillReading
from telemetry.page.warming import Warming
from telemetry.views.columns import RunColumns, read_columns
from tests.telemetry.page.page_process import PageProcess
from tests.telemetry.page.recorded_runs import HOSTILE, START_S, append, write_run
from tests.telemetry.waiting import wait_until


def journal_of(run_dir: Path) -> dict[str, bytes]:
    """All of a run but the columns, which may be deleted."""
    files = (path for path in run_dir.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if "columns" not in path.parts}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("data")
    write_run(data_dir, "r-plain", steps=200)
    write_run(data_dir, "r-restart", steps=200, restart_at=100, hostile=HOSTILE)
    return data_dir


@pytest.fixture(scope="module")
def page(data_dir: Path) -> Iterator[PageProcess]:
    with PageProcess(data_dir) as page:
        yield page


def test_the_list_has_state_last_values_and_times(page):
    lines = {line["run_id"]: line for line in page.json("/api/runs")["runs"]}

    line = lines["r-plain"]
    assert (line["state"], line["step"], line["host"]) == ("finished", 200, "node1")
    assert line["val_loss"] == pytest.approx(2.6 + 5 * 2.718281828**-6, rel=1e-6)
    assert line["duration_s"] == 100 and line["tags"] == ["tiny", "b1.58"]


def test_a_run_is_told_with_its_stages_restarts_gaps_and_alerts(page):
    found = page.json("/api/runs/r-restart")

    kinds = {mark["kind"] for mark in found["marks"]}
    assert {"start", "restart", "stage", "alert", "gap", "message", "finished"} <= kinds
    assert found["loss_name"] == "train/loss" and found["total_steps"] == 200
    assert "quant/zero_ratio" in found["layer_metrics"] and found["histograms"] == ["weights/all"]
    assert "\u202e" not in str(found["name"]) and "\u202e" not in str(found["marks"])


def test_superseded_rows_are_apart_and_what_is_not_a_number_is_named(page):
    (series,) = page.json("/api/runs/r-restart/series?s=rank0&n=train/loss")["series"]

    assert series["step"] == list(range(1, 201))
    assert series["former"]["step"] == list(range(80, 101))
    place, word = series["odd"][0]
    assert (series["step"][place], series["value"][place], word) == (41, None, "nan")


def test_a_part_of_the_time_and_the_hardware_over_steps(page):
    """The rows of a sampler have the step at which rank 0 was."""
    part = page.json("/api/runs/r-plain/series?s=rank0&n=train/loss&from=50&to=60")["series"][0]
    query = "s=hardware:node1&n=cpu_percent"
    whole = page.json(f"/api/runs/r-plain/series?{query}")["series"][0]
    late = page.json(f"/api/runs/r-plain/series?x=time&from={START_S + 90}&{query}")["series"][0]

    # With the last point before and the first one behind: the line goes on to the edges.
    assert part["step"] == list(range(49, 62))
    assert whole["count"] == 100 and whole["step"][50] == pytest.approx(102, abs=2)
    assert late["count"] == 12


def test_grids_are_of_layers_and_of_bins(page):
    layers = page.json("/api/runs/r-plain/layers?metric=quant/flip_ratio")
    bins = page.json("/api/runs/r-plain/histogram?name=weights/all")

    assert len(layers["y"]) == 16 and layers["step"] == list(range(10, 201, 10))
    assert len(layers["z"]) == 16 and all(len(row) == 20 for row in layers["z"])
    assert len(bins["y"]) == 64 and len(bins["z"][0]) == 20
    assert sum(row[0] for row in bins["z"]) == pytest.approx(1, abs=0.01)


def test_the_time_is_told_by_cause(page):
    """What a restart cost is in it; the shares add up."""
    spent = page.json("/api/runs/r-restart/goodput")

    assert sum(spent["ratios"].values()) == pytest.approx(1)
    assert spent["seconds"]["restart"] > 30 and spent["seconds"]["lost_work"] > 0
    assert "goodput" in spent["lines"][0]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/runs/nothing", 404, "there is no run nothing"),
        ("/runs/a%20b", 404, "not the id of a run"),
        ("/compare?run=r-plain", 400, "two to 20 runs"),
        ("/compare?run=r-plain&run=../..", 404, "not the id of a run"),
        ("/api/runs/nothing", 404, "there is no"),
        ("/api/runs/r-plain/series?s=rank0", 400, "as many s= as n="),
        ("/api/runs/r-plain/series?s=rank0&n=x&from=nan", 400, "finite"),
        ("/api/runs/r-plain/series?s=rank0&n=x&from=x", 400, "must be a number"),
        ("/api/runs/r-plain/series?s=rank0&n=x&points=1", 400, "from 8 to"),
        ("/api/runs/r-plain/series?s=rank0&n=x&x=%3Cb%3E", 400, "must be step or time"),
    ],
)
def test_a_question_without_an_answer_gets_words(page, path, status, words):
    found, body = page.html(path)

    assert found == status and words in body
    assert "Traceback" not in body


def test_names_that_there_are_not_are_empty(page):
    (series,) = page.json("/api/runs/r-plain/series?s=rank9&n=no")["series"]
    grid = page.json("/api/runs/r-plain/layers?metric=no")
    bins = page.json("/api/runs/r-plain/histogram?name=no")

    assert series["count"] == 0 and grid["z"] == [] and bins["z"] == []


def test_damaged_and_half_copied_runs_are_shown_as_far_as_they_go(tmp_path):
    """And nothing that is recorded changes by a look at it."""
    damaged = write_run(tmp_path, "r-damaged", steps=200)
    (segment,) = (damaged / "journal").glob("*.seg")
    data = bytearray(segment.read_bytes()[: segment.stat().st_size * 3 // 4])
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)
    (damaged / "run.json").write_text('{"run_id": 5')
    (tmp_path / "runs" / "r-empty").mkdir()
    (tmp_path / "runs" / "r-file").write_text("")
    before = journal_of(damaged)

    with PageProcess(tmp_path) as page:
        lines = {line["run_id"]: line for line in page.json("/api/runs")["runs"]}
        found = page.json("/api/runs/r-damaged")
        status, html = page.html("/runs/r-damaged")
        empty = page.html("/runs/r-empty")
        no_columns = page.html("/api/runs/r-empty")

    assert set(lines) == {"r-damaged", "r-empty"}
    assert "run.json" in lines["r-damaged"]["problem"]
    assert found["names"] and any(mark["kind"] == "damage" for mark in found["marks"])
    assert status == 200 and "run.json" in html
    assert empty[0] == 200 and no_columns[0] == 404 and "journal" in no_columns[1]
    assert journal_of(damaged) == before


def test_a_run_that_grows_and_then_goes_away(tmp_path):
    run_dir = write_run(tmp_path, "r", steps=50, is_ended=False)
    with PageProcess(tmp_path) as page:
        before = page.json("/api/runs/r")["rows"]
        with JournalWriter(run_dir / "journal") as writer:
            event = MetricsLogged(kind="train", step=51, values={"train/loss": 1.0})
            append(writer, run_dir, [event], "s1", START_S + 60, seq=10_000)
        status = wait_for_rows(page, before + 1)
        shutil.rmtree(run_dir)
        lines = page.json("/api/runs")["runs"]
        gone = wait_until(lambda: (found := page.html("/api/runs/r"))[0] == 404 and found[1])

    assert status == before + 1 and lines == [] and "can't be read any more" in gone


def wait_for_rows(page: PageProcess, rows: int) -> int:
    wait_until(lambda: page.json("/api/runs/r")["rows"] >= rows)
    return int(page.json("/api/runs/r")["rows"])


def test_a_directory_that_can_not_be_written_is_shown_as_well(tmp_path):
    """As of another user, or on media that are read-only: columns are made in memory."""
    write_run(tmp_path, "r", steps=50)
    (tmp_path / "runs" / "r" / "columns").write_text("no directory can be made here")
    with PageProcess(tmp_path) as page:
        found = page.json("/api/runs/r")

    assert found["step"] == 50


def test_a_journal_that_takes_long_to_read_keeps_nobody_waiting(tmp_path):
    """The browser is told, and asks again; the reading goes on meanwhile."""
    write_run(tmp_path, "r", steps=20)
    may_read = threading.Event()

    def slow(path: Path) -> RunColumns:
        assert may_read.wait(30)
        return read_columns(path)

    runs = OpenRuns(tmp_path, slow)
    with pytest.raises(StillReading), runs.columns("r"):
        pass
    may_read.set()
    with runs.columns("r") as columns:
        assert columns.rows > 20
    with pytest.raises(NotFound), runs.columns("nothing"):
        pass


def test_only_so_many_runs_stay_open(tmp_path):
    opened: list[str] = []

    def read(path: Path) -> RunColumns:
        opened.append(path.name)
        return read_columns(path)

    for name in ("a", "b", "c"):
        write_run(tmp_path, name, steps=10)
    runs = OpenRuns(tmp_path, read, runs_max=2)
    for name in ("a", "b", "c", "b", "a"):
        with runs.columns(name) as columns:
            assert columns.run_id == name

    assert opened == ["a", "b", "c", "a"]


def test_columns_of_long_runs_are_kept_ahead_and_one_that_fails_stops_no_other(tmp_path):
    kept: list[str] = []

    def keep(path: Path) -> RunColumns:
        kept.append(path.name)
        if path.name == "r-3":
            raise OSError(5, "no")
        return read_columns(path)

    for name, steps in (("r-1", 5), ("r-2", 60), ("r-3", 60)):
        write_run(tmp_path, name, steps=steps)
    ahead = Warming(tmp_path, keep, growth_rows=40)
    ahead.look()
    ahead.look()

    assert kept == ["r-3", "r-2"]
