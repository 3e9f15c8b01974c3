"""Runs under their names: a directory of links for TensorBoard."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from telemetry.run_dir import RunFile
from telemetry.run_names import link_name, logdir_of, name_run
from telemetry.sinks.base import START, SinkContext
from telemetry.sinks.tensorboard import TensorBoardSink
from tests.telemetry.sinks.helpers_rows import RowMaker


def a_run(data_dir: Path, run_id: str) -> Path:
    run_dir = data_dir / "runs" / run_id
    (run_dir / "tensorboard" / "rank0").mkdir(parents=True)
    return run_dir


def names(data_dir: Path) -> dict[str, str]:
    """The run that each name leads to."""
    view = data_dir / "tensorboard"
    return {p.name: (p / "..").resolve().name for p in view.iterdir()} if view.is_dir() else {}


def test_a_sink_puts_its_run_under_its_name(tmp_path: Path) -> None:
    """`tensorboard --logdir DATA_DIR/tensorboard` shows NAME/rank0."""
    run_dir = tmp_path / "runs" / "r1"
    run_dir.mkdir(parents=True)
    journal = RowMaker()
    journal.metrics(1, {"train/loss": 1.0})
    sink = TensorBoardSink(SinkContext("r1", run_dir, RunFile(name="my run"), {}))
    sink.open(START)
    sink.write(journal.rows)
    sink.commit()
    sink.close()

    assert list((tmp_path / "tensorboard" / "my run" / "rank0").glob("events*"))
    assert logdir_of(run_dir) == tmp_path / "tensorboard"


def test_a_name_that_is_taken_gets_the_id_behind_it(tmp_path: Path) -> None:
    """Each run keeps its own, however often its sink starts."""
    runs = [a_run(tmp_path, run_id) for run_id in ("r1", "r2", "r3")]

    for run_dir in [*runs, *reversed(runs)]:
        name_run(run_dir, "base")

    assert names(tmp_path) == {"base": "r1", "base-r2": "r2", "base-r3": "r3"}


def test_a_link_that_is_right_is_left_as_it_is(tmp_path: Path) -> None:
    """A TensorBoard that is open never finds it gone."""
    first, second = a_run(tmp_path, "r1"), a_run(tmp_path, "r2")
    name_run(first, "base")
    link = name_run(second, "base")
    assert link is not None
    before = link.lstat().st_ino, link.lstat().st_ctime_ns
    shutil.rmtree(first)

    assert name_run(second, "base") == link
    assert (link.lstat().st_ino, link.lstat().st_ctime_ns) == before


def test_a_run_that_got_another_name_has_only_that(tmp_path: Path) -> None:
    """As one that was introduced late."""
    run_dir = a_run(tmp_path, "r1")

    name_run(run_dir, "r1")
    name_run(run_dir, "better")

    assert names(tmp_path) == {"better": "r1"}


def test_the_name_of_a_removed_run_is_free_again(tmp_path: Path) -> None:
    """Retention removes directories and knows nothing of names."""
    name_run(a_run(tmp_path, "r1"), "base")
    shutil.rmtree(tmp_path / "runs" / "r1")

    name_run(a_run(tmp_path, "r2"), "base")

    assert names(tmp_path) == {"base": "r2"} or names(tmp_path) == {"base-r2": "r2"}
    assert logdir_of(tmp_path / "runs" / "r2") == tmp_path / "tensorboard"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "-..-etc-passwd"),
        ("/abs", "-abs"),
        ("..", "run"),
        ("", "run"),
        ("a\x00b\x1b[2J", "a\\x00b\\x1b[2J".replace("\\", "-")),
        ("é" * 200, "é" * 50),
        ("a\\b//c", "a-b-c"),
    ],
)
def test_a_name_never_leads_elsewhere(tmp_path: Path, name: str, expected: str) -> None:
    """Whatever a producer calls its run, the link lies in the one directory."""
    assert link_name(name, "run") == expected

    link = name_run(a_run(tmp_path, "run"), name)

    assert link is not None
    assert link.parent == tmp_path / "tensorboard"
    assert link.resolve() == tmp_path / "runs" / "run" / "tensorboard"


def test_what_is_no_link_of_ours_is_left_alone(tmp_path: Path) -> None:
    """Somebody's own file of that name, or a link elsewhere."""
    view = tmp_path / "tensorboard"
    view.mkdir()
    (view / "base").write_text("mine")
    (view / "other").symlink_to("/etc")

    name_run(a_run(tmp_path, "r1"), "base")

    assert (view / "base").read_text() == "mine" and (view / "other").is_symlink()
    assert (view / "base-r1").resolve() == tmp_path / "runs" / "r1" / "tensorboard"


def test_where_there_is_no_place_for_names_the_sink_goes_on(tmp_path: Path) -> None:
    """A view is not worth a failure; a replay has no data directory at all."""
    (tmp_path / "tensorboard").write_text("in the way")
    run_dir = a_run(tmp_path, "r1")

    assert name_run(run_dir, "base") is None
    assert name_run(tmp_path / "out" / "r1", "base") is None
    assert logdir_of(run_dir) == run_dir / "tensorboard"
