"""Repair: a clean copy of a damaged journal."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.events import Event, Gap, MetricsLogged, encode_event, join_events
from shared.ids import StreamId
from telemetry.cli import main
from telemetry.commands.inspect import read_contents
from telemetry.commands.repair import repair
from telemetry.errors import CommandError
from telemetry.journal.layout import segments
from telemetry.journal.reader import JournalReader
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json

FRAMES = 12
IN_FRAME = 3


def write_run(run_dir: Path) -> None:
    """A run of FRAMES frames with IN_FRAME events each, from two sources in turn."""
    with JournalWriter(run_dir / "journal", segment_max_bytes=700) as writer:
        for number in range(FRAMES):
            base = number // 2 * IN_FRAME
            packed = [
                encode_event(MetricsLogged(kind="train", step=base + i, values={"x": 0.5}), 1, 1)
                for i in range(IN_FRAME)
            ]
            source = f"rank{number % 2}"
            writer.append(StreamId("r", "s", source), base, IN_FRAME, join_events(packed))
            writer.sync()
    write_json(run_dir / "run.json", {"run_id": "r", "name": "r", "state": "ended"})


def events_of(run_dir: Path) -> list[tuple[str, int, Event | None]]:
    found: list[tuple[str, int, Event | None]] = []
    with JournalReader(run_dir / "journal") as reader:
        while not (batch := reader.read()).is_end or batch.rows:
            found += [(row.source, row.seq, row.envelope.event()) for row in batch.rows]
    return found


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_event_that_can_be_read_is_in_the_copy_and_the_rest_is_counted(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes go bad: the copy is whole, in order, and says what is missing."""
    run_dir = tmp_path_factory.mktemp("runs") / "r"
    write_run(run_dir)
    segment = data.draw(st.sampled_from(segments(run_dir / "journal")))
    content = bytearray(segment.path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    segment.path.write_bytes(content)
    readable = events_of(run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

    copy = repair(run_dir)

    kept = [item for item in events_of(copy) if not isinstance(item[2], Gap)]
    gaps = [event for _, _, event in events_of(copy) if isinstance(event, Gap)]
    assert kept == readable
    assert read_contents(copy / "journal").damage == []
    # Behind damage to the last segment's header nobody can tell how much there was.
    assert sum(gap.count for gap in gaps) <= FRAMES * IN_FRAME - len(readable)
    if segment != segments(run_dir / "journal")[-1]:
        assert sum(gap.count for gap in gaps) == FRAMES * IN_FRAME - len(readable)
    assert {path: path.read_bytes() for path in before} == before


def test_inspect_finds_the_damage_and_the_copy_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`inspect` exits 1 on the damaged run, `inspect --repair` 0 on its copy."""
    write_run(tmp_path / "r")
    (tmp_path / "r" / "journal" / segments(tmp_path / "r" / "journal")[1].path.name).unlink()

    assert main(["inspect", str(tmp_path / "r")]) == 1
    assert "missing rows" in capsys.readouterr().out
    assert main(["inspect", "--repair", str(tmp_path / "r")]) == 0
    assert "damaged in the journal" in capsys.readouterr().out


def test_a_second_repair_does_not_write_over_the_first(tmp_path: Path) -> None:
    """The copy is somebody's data, too."""
    write_run(tmp_path / "r")
    repair(tmp_path / "r")

    with pytest.raises(CommandError, match="exists already"):
        repair(tmp_path / "r")
