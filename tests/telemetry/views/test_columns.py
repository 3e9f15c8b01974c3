"""Columns: a journal as arrays, whatever state it is in."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.events import (
    AlertChanged,
    Gap,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    encode_event,
    join_events,
)
from shared.ids import StreamId
from telemetry.errors import CommandError
from telemetry.journal.writer import JournalWriter
from telemetry.views.columns import RunColumns, read_columns
from tests.telemetry.views.journals import (
    START_S,
    Said,
    finished,
    started,
    steps,
    write_journal,
    write_run_file,
)


def values(columns: RunColumns, name: str, source: str | None = None) -> list[float]:
    return columns.series(name, source).value.tolist()


def test_a_series_has_step_time_and_value_of_each_row(tmp_path: Path) -> None:
    """A row without a step has -1, and NaN and infinity are values as others are."""
    odd = MetricsLogged(kind="custom", values={"train/loss": math.inf})
    nan = MetricsLogged(kind="train", step=3, values={"train/loss": math.nan, "flag": True})
    run = write_journal(tmp_path / "r", [Said([started(), *steps(1, 2), odd, nan])])

    series = read_columns(run).series("train/loss")

    assert series.step.tolist() == [1, 2, -1, 3]
    assert series.wall_s.tolist() == [START_S + i for i in (1, 2, 3, 4)]
    assert series.value[:3].tolist() == [9.99, 9.98, math.inf] and math.isnan(series.value[3])
    assert read_columns(run).series("flag").value.tolist() == [1.0]
    assert len(read_columns(run).series("no such name").value) == 0


def test_rows_of_different_names_stay_in_the_order_of_the_journal(tmp_path: Path) -> None:
    """Rows are collected by their names; a series goes through several such groups."""
    rows = [
        MetricsLogged(kind="train", step=s, values={"a": float(s), **({"b": 1.0} if s % 3 else {})})
        for s in range(1, 20)
    ]
    run = write_journal(tmp_path / "r", [Said([started(), *rows])])

    assert values(read_columns(run), "a") == [float(s) for s in range(1, 20)]


def test_a_restart_supersedes_the_steps_behind_its_checkpoint(tmp_path: Path) -> None:
    """Those of the session before; rows of ranks beside it are judged by their own restarts."""
    rank1 = [MetricsLogged(kind="train", step=s, values={"x": 1.0}) for s in range(1, 6)]
    run = write_journal(
        tmp_path / "r",
        [
            Said([started(), *steps(1, 5)]),
            Said([started(), *rank1], source="rank1"),
            Said([started(3), *steps(4, 6)], at_s=100, session="s2"),
            Said([started(3), *rank1[3:]], at_s=100, source="rank1", session="t2"),
        ],
    )
    columns = read_columns(run)

    loss = columns.series("train/loss")
    assert loss.step.tolist() == [1, 2, 3, 4, 5, 4, 5, 6]
    assert loss.superseded.tolist() == [False] * 3 + [True] * 2 + [False] * 3
    second = columns.series("x", "rank1")
    assert second.superseded.tolist() == [False] * 3 + [True] * 2 + [False] * 2
    assert columns.sources() == ["rank0", "rank1"]
    assert [s.is_superseded for s in columns.sessions] == [True, True, False, False]


def test_a_restart_from_the_beginning_supersedes_everything(tmp_path: Path) -> None:
    run = write_journal(
        tmp_path / "r",
        [Said([started(), *steps(1, 5)]), Said([started(), *steps(1, 2)], 100, session="s2")],
    )

    assert read_columns(run).series("train/loss").superseded.tolist() == [True] * 5 + [False] * 2


def test_late_rows_of_a_former_session_are_superseded_too(tmp_path: Path) -> None:
    """The spool of the session before arrives when its successor has done the steps again."""
    run = write_journal(
        tmp_path / "r",
        [
            Said([started(), *steps(1, 3)]),
            Said([started(2), *steps(3, 5)], 100, session="s2"),
            Said(steps(4, 5), 4, is_late=True),
            Said([started(), *steps(1, 2)], -50, session="s0", is_late=True),
        ],
    )

    series = read_columns(run).series("train/loss")

    assert series.step.tolist() == [1, 2, 3, 3, 4, 5, 4, 5, 1, 2]
    # The late session s0 is older than s2, and younger than s1, which began earlier in the journal.
    expected = [True, True, True, False, False, False, True, True, False, False]
    assert series.superseded.tolist() == expected


def test_texts_are_changes_and_stages_are_marks(tmp_path: Path) -> None:
    rows = [
        MetricsLogged(kind="train", step=s, values={"train/training_stage": t, "x": 1.0})
        for s, t in enumerate(["warmup", "warmup", "full_ternary", "full_ternary"], 1)
    ]
    columns = read_columns(write_journal(tmp_path / "r", [Said([started(), *rows])]))

    assert [(c.step, c.text) for c in columns.texts("train/training_stage")] == [
        (1, "warmup"),
        (3, "full_ternary"),
    ]
    assert columns.names() == ["x"]
    stages = [m for m in columns.marks if m.kind == "stage"]
    assert [(m.text, m.step, m.end_wall_s) for m in stages] == [
        ("warmup", 1, START_S + 3),
        ("full_ternary", 3, None),
    ]


def test_marks_tell_what_happened(tmp_path: Path) -> None:
    """An alert has the end that was told, or the start of the next session of its source."""
    on, over = (AlertChanged(name="gpu_xid", subject="gpu/0", is_active=a) for a in (True, False))
    run = write_journal(
        tmp_path / "r",
        [
            Said([started(), *steps(1, 1), MessageLogged(level="warning", text="hot")]),
            Said([on, over, on], 10, source="hardware:node1", session="h1"),
            Said([Gap(count=7, reason="full")], 20),
            Said([MetricsLogged(kind="hardware", values={"cpu_percent": 1.0})], 30,
                 source="hardware:node1", session="h2"),
            Said([started(1), *steps(2, 2), finished()], 40, session="s2"),
        ],
    )  # fmt: skip

    marks = read_columns(run).marks

    told = [
        (m.kind, m.wall_s - START_S, m.step, m.end_wall_s and m.end_wall_s - START_S) for m in marks
    ]
    assert told == [
        ("start", 0, None, None),
        ("message", 2, 1, None),
        ("alert", 10, 1, 11),
        ("alert", 12, 1, 30),
        ("gap", 20, 1, None),
        ("restart", 40, 1, None),
        ("finished", 42, 2, None),
    ]
    assert marks[4].text == "7 events are missing: full"


def test_a_long_message_is_cut_and_many_are_counted(tmp_path: Path) -> None:
    """The newest stay."""
    said = [
        MessageLogged(level="info", text=f"{n} " + "x" * 3_000 * (n == 5_099)) for n in range(5_100)
    ]
    run = write_journal(tmp_path / "r", [Said(said)])

    columns = read_columns(run)

    assert len(columns.marks) == 5_000 and columns.left_out == {"marks": 100}
    assert (columns.marks[0].text, len(columns.marks[-1].text)) == ("100 ", 2_000)


def test_histograms_keep_their_edges_and_counts(tmp_path: Path) -> None:
    rows = [
        HistogramLogged(kind="quant", step=s, name="w", edges=[0.0, 1.0 * s, 9.0][: s + 1],
                        counts=[1.0, 2.0][:s])
        for s in (1, 2)
    ]  # fmt: skip
    columns = read_columns(write_journal(tmp_path / "r", [Said([started(), *rows])]))

    found = columns.histograms("w")

    assert columns.histogram_names() == ["w"]
    assert [(h.step, h.edges.tolist(), h.counts.tolist()) for h in found] == [
        (1, [0.0, 1.0], [1.0]),
        (2, [0.0, 2.0, 9.0], [1.0, 2.0]),
    ]


def test_layers_make_a_grid_of_their_newest_values(tmp_path: Path) -> None:
    def quant(step: int, value: float, *layers: int) -> MetricsLogged:
        named: dict[str, float | int | bool | str] = {
            f"quant/layers.{n}.attention/zero_ratio": value + n for n in layers
        }
        return MetricsLogged(kind="quant", step=step, values=named)

    run = write_journal(
        tmp_path / "r",
        [
            Said([started(), quant(10, 0.1, 2, 10), quant(20, 0.2, 2)]),
            Said([started(10), quant(20, 0.3, 2)], 100, session="s2"),
        ],
    )
    columns = read_columns(run)

    grid = columns.layer_grid("quant/zero_ratio")

    assert columns.layer_metrics() == ["quant/zero_ratio"]
    assert grid.layers == ["layers.2.attention", "layers.10.attention"]
    assert grid.steps.tolist() == [10, 20]
    expected = [[2.1, 2.3], [10.1, np.nan]]
    assert np.allclose(grid.value, expected, equal_nan=True)


def test_an_update_takes_in_what_came_since(tmp_path: Path) -> None:
    """However many small parts a live run comes in."""
    run = write_journal(tmp_path / "r", [Said([started()])])
    write_run_file(run, state="running")
    with read_columns(run) as columns:
        assert not columns.update()
        for step in range(1, 40):
            write_journal(run, [Said(steps(step, step), at_s=step)])
            assert columns.update()

        write_run_file(run, state="ended", status="finished")
        assert columns.update() and columns.info.status == "finished"

        whole = read_columns(run)
        for one, other in zip(
            columns.series("train/loss"), whole.series("train/loss"), strict=True
        ):
            assert one.tolist() == other.tolist()
        assert columns.sessions == whole.sessions and columns.marks == whole.marks


def test_a_live_run_is_read_as_far_as_it_is_on_disk(tmp_path: Path) -> None:
    """A writer has it open, and has written rows that are not synced: they are not there yet."""
    run = write_journal(tmp_path / "r", [Said([started(), *steps(1, 3)])])
    stream = StreamId("r", "s1", "rank0")
    with JournalWriter(run / "journal") as writer:
        packed = [encode_event(event, 1, 1) for event in steps(4, 5)]
        writer.append(stream, 4, 2, join_events(packed))
        with read_columns(run) as columns:
            assert columns.rows == 4
            os.truncate(run / "journal" / f"{0:020}.seg", 10_000)  # as a write before its sync
            assert not columns.update() and columns.rows == 4
            os.truncate(run / "journal" / f"{0:020}.seg", writer._offset)
            writer.sync()
            assert columns.update() and columns.rows == 6


def test_a_copy_ends_where_its_files_do(tmp_path: Path) -> None:
    """The mark says that there is more: it is not there yet, and is no damage. It comes later."""
    run = write_journal(tmp_path / "r", [Said([started(), *steps(1, 3)]), Said(steps(4, 9), 9)])
    whole = (run / "journal" / f"{0:020}.seg").read_bytes()
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    segment = copy / "journal" / f"{0:020}.seg"
    segment.write_bytes(whole[:-40])

    with read_columns(copy) as columns:
        assert len(values(columns, "train/loss")) == 3
        assert [m.kind for m in columns.marks] == ["start"]
        assert not columns.update()
        segment.write_bytes(whole)
        assert columns.update()
        assert len(values(columns, "train/loss")) == 9


def test_damage_is_a_mark_and_the_rows_around_it_are_read(tmp_path: Path) -> None:
    run = write_journal(
        tmp_path / "r",
        [Said([started(), *steps(1, 3)]), Said(steps(4, 5), 9), Said(steps(6, 7), 19)],
    )
    segment = run / "journal" / f"{0:020}.seg"
    data = bytearray(segment.read_bytes())
    at = data.index(b"train/loss", len(data) * 2 // 3)
    data[at] ^= 1
    segment.write_bytes(data)

    columns = read_columns(run)

    assert len(values(columns, "train/loss")) in (5, 6)
    assert [m.kind for m in columns.marks] == ["start", "damage"]


def test_a_run_on_read_only_media_is_read(tmp_path: Path) -> None:
    """And nothing is written into any run by reading it."""
    run = write_journal(tmp_path / "r", [Said([started(), *steps(1, 3)])])
    before = sorted(tmp_path.rglob("*"))
    for path in (run / "journal", run):
        path.chmod(0o555)
    try:
        assert len(values(read_columns(run), "train/loss")) == 3
    finally:
        for path in (run, run / "journal"):
            path.chmod(0o755)

    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["nothing", "empty", "run/journal"])
def test_what_is_no_run_is_refused_on_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    write_journal(tmp_path / "run", [Said([started()])])

    with pytest.raises(CommandError) as refused:
        read_columns(tmp_path / place)

    assert "\n" not in str(refused.value)


def test_a_sidecar_does_without_numpy() -> None:
    """Ingest, sinks of TensorBoard apart, and the command line do not load it."""
    code = (
        "import sys, telemetry.service, telemetry.cli, telemetry.commands.inspect;"
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
