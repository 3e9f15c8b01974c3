"""The file of last steps: all of a commit is there, or it is known not to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.sinks.base import Position
from telemetry.sinks.tensorboard.lasts_file import DamagedLasts, LastsCommit, LastsFile
from telemetry.sinks.tensorboard.placement import Change
from tests.telemetry.sinks.helpers_rows import RowMaker
from tests.telemetry.sinks.helpers_tensorboard import (
    by_tag,
    read_all,
    sink_in,
    through_json,
    write_all,
)


def change(tag: str, step: int, value: float | str = 1.0) -> tuple[int, Change]:
    return 0, Change(0, False, {tag: (step, value)})


def files(out_dir: Path) -> list[str]:
    return sorted(path.name for path in (out_dir / "cursors").glob("tensorboard.lasts.*"))


def test_what_was_committed_is_read_back_and_nothing_behind_it(tmp_path: Path) -> None:
    """A commit is a length: what a killed process wrote after it does not count."""
    file = LastsFile(tmp_path)
    file.open(LastsCommit())
    first = file.commit([change("a", 1)], [change("a", 1)], 1)
    second = file.commit([change("a", 2), change("t", 2, "text:x")], [], 1)
    file.commit([change("a", 3)], [], 1)

    assert LastsFile(tmp_path).open(second)[1:] == [change("a", 2), change("t", 2, "text:x")]
    assert LastsFile(tmp_path).open(first) == [change("a", 1)]


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    """A run that stands still costs no sync."""
    file = LastsFile(tmp_path)
    file.open(LastsCommit())

    assert file.commit([], [], 1) == LastsCommit()
    assert not (tmp_path / "cursors").exists()


def test_each_process_begins_with_all_that_is_known(tmp_path: Path) -> None:
    """It never writes into another's file, of which something may stand behind the commit."""
    file = LastsFile(tmp_path)
    file.open(LastsCommit())
    position = file.commit([change("a", 1)], [change("a", 1)], 1)
    later = LastsFile(tmp_path)
    known = later.open(position)

    position = later.commit([change("b", 2)], [*known, change("b", 2)], 2)

    assert position.name == "tensorboard.lasts.000002.000001"
    assert LastsFile(tmp_path).open(position) == [change("a", 1), change("b", 2)]


def test_a_file_that_has_grown_is_followed_by_a_short_one(tmp_path: Path) -> None:
    """And stays until neither of the last two positions names it."""
    file = LastsFile(tmp_path, min_bytes=200)
    file.open(LastsCommit())
    positions = []
    for step in range(40):
        positions.append(file.commit([change("a", step)], [change("a", step)], 1))
        assert {positions[-1].name, positions[max(0, step - 1)].name} == set(files(tmp_path))

    assert len({position.name for position in positions}) > 2
    assert LastsFile(tmp_path).open(positions[-2])[-1] == change("a", 38)
    assert all(position.length < 400 for position in positions)


def test_files_that_no_position_names_are_removed_and_no_others(tmp_path: Path) -> None:
    """At the start and later. The cursor itself lies in the same directory."""
    cursors = tmp_path / "cursors"
    cursors.mkdir()
    others = {"tensorboard.json", "tensorboard.lock", "tensorboard.lasts", "lines.json"}
    for name in (*others, "tensorboard.lasts.000001.000001", "tensorboard.lasts.000001.000002"):
        (cursors / name).touch()
    file = LastsFile(tmp_path)

    file.open(LastsCommit("tensorboard.lasts.000001.000002", 0))
    assert files(tmp_path) == ["tensorboard.lasts.000001.000002"]
    for step in range(3):
        position = file.commit([change("a", step)], [change("a", step)], 2)

    assert files(tmp_path) == [position.name]
    assert others <= {path.name for path in cursors.iterdir()}


def test_a_position_that_ends_inside_a_record_is_damaged(tmp_path: Path) -> None:
    """In its header or in its payload; only whole records are ever committed."""
    file = LastsFile(tmp_path)
    file.open(LastsCommit())
    first = file.commit([change("a", 1)], [change("a", 1)], 1)
    second = file.commit([change("a", 2)], [], 1)

    for length in range(first.length + 1, second.length):
        with pytest.raises(DamagedLasts, match="damaged at byte"):
            LastsFile(tmp_path).open(LastsCommit(second.name, length))


@given(at=st.integers(0, 300), bit=st.integers(0, 7), data=st.data())
def test_a_flipped_bit_or_a_cut_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int, data: st.DataObject
) -> None:
    """Anywhere in what was committed: the sink then writes everything anew."""
    out_dir = tmp_path_factory.mktemp("damaged")
    file = LastsFile(out_dir)
    file.open(LastsCommit())
    changes = [change(f"tag {number}", number) for number in range(5)]
    position = file.commit(changes, changes, 1)
    path = out_dir / "cursors" / position.name
    content = bytearray(path.read_bytes())
    at %= len(content)
    if data.draw(st.booleans(), "is cut"):
        del content[at:]
    else:
        content[at] ^= 1 << bit
    path.write_bytes(bytes(content))

    with pytest.raises(DamagedLasts, match=position.name):
        LastsFile(out_dir).open(position)


@pytest.mark.parametrize("name", ["../../etc/passwd", "tensorboard.json", "x"])
def test_a_name_that_is_not_of_such_a_file_is_not_read(tmp_path: Path, name: str) -> None:
    """A position is a file like any other, and may say anything."""
    with pytest.raises(DamagedLasts, match="no file of last steps"):
        LastsFile(tmp_path).open(LastsCommit(name, 1))


def test_a_sink_that_was_restarted_knows_what_it_has_written(tmp_path: Path) -> None:
    """The same value is not written again, and a late one goes where the first life put it."""
    journal = RowMaker()
    for step, value in ((1, 1.0), (3, 3.0), (2, 2.0), (3, 3.0), (2, 2.0), (1, 9.0), (4, 4.0)):
        journal.metrics(step, {"x": value}, kind="custom")
    write_all(tmp_path / "whole", journal.rows)

    position = Position(0, {})
    for upto in range(1, len(journal.rows) + 1):
        sink = sink_in(tmp_path / "lives")
        sink.write(journal.rows[sink.open(through_json(position)) : upto])
        position = sink.commit()
        sink.close()

    assert read_all(tmp_path / "lives") == read_all(tmp_path / "whole")
    assert by_tag(read_all(tmp_path / "lives"), "x") == [(1, 1), (3, 3), (4, 4), (2, 2), (1, 9)]


def test_a_sink_without_its_last_steps_writes_everything_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Removed, or damaged: no point is doubled, and none is missing."""
    journal = RowMaker()
    for step in (1, 2, 1):
        journal.metrics(step, {"x": float(step)})
    position = write_all(tmp_path, journal.rows)
    expected = read_all(tmp_path)
    (tmp_path / "cursors" / files(tmp_path)[0]).unlink()

    sink = sink_in(tmp_path)
    next_row = sink.open(through_json(position))
    sink.write(journal.rows[next_row:])
    sink.commit()
    sink.close()

    assert next_row == 0 and "written anew" in caplog.text
    assert read_all(tmp_path) == expected
