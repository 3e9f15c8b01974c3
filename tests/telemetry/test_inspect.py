"""`inspect` and `replay`: what is said of a recorded run, and where it can go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.events import Gap, MetricsLogged, RunFinished, RunStarted, encode_event, join_events
from shared.ids import StreamId
from shared.record import decode_segment_header
from shared.text import clean
from telemetry.commands.inspect import inspect
from telemetry.commands.replay import replay
from telemetry.errors import EXIT_DAMAGED, EXIT_OK, CommandError
from telemetry.journal.layout import MARK_NAME, Mark, encode_mark, segments
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import read_json, write_json
from telemetry.sinks.base import SinkContext
from telemetry.sinks.delivery import Pace
from tests.telemetry.sidecar_process import clean_env
from tests.telemetry.sinks.lines_sink import Killed, LinesSink, Trouble, lines
from tests.telemetry.wire_client import metric

RANK0 = StreamId("r", "s1", "rank0")


def recorded(directory: Path, name: str = "n", frames: int = 4) -> Path:
    """An ended run of some frames, two events each."""
    run_dir = directory / "r"
    with JournalWriter(run_dir / "journal") as writer:
        for frame in range(frames):
            seq = 2 * frame
            events = [metric(seq), metric(seq + 1)]
            packed = [encode_event(e, 10**18 + (seq + i) * 10**9, 1) for i, e in enumerate(events)]
            writer.append(RANK0, seq, 2, join_events(packed))
        writer.sync()
    write_json(
        run_dir / "run.json",
        {"run_id": "r", "name": name, "state": "ended", "status": "finished", "exit_code": 0},
    )
    return run_dir


def introduced(directory: Path) -> Path:
    """A run whose journal tells what it is called and how it ended."""
    events = [
        RunStarted(project="p", name="a name", wandb_mode="offline"),
        metric(0),
        RunFinished(status="failed", exit_code=3),
    ]
    with JournalWriter(directory / "r" / "journal") as writer:
        packed = [encode_event(event, 10**18, 1) for event in events]
        writer.append(RANK0, 0, 3, join_events(packed))
        writer.sync()
    write_json(directory / "r" / "run.json", {"run_id": "r"})
    return directory / "r"


def damage(run_dir: Path, offset_from_end: int) -> None:
    (segment,) = segments(run_dir / "journal")
    data = bytearray(segment.path.read_bytes())
    data[-offset_from_end] ^= 0x10
    segment.path.write_bytes(data)


class IntoLines:
    """A replay into a file of lines, with trouble where the test wants it."""

    def __init__(self) -> None:
        self.trouble = Trouble()

    def __call__(self, runs: list[Path], out: Path) -> int:
        return replay(runs, "lines", out, None, make=self.make, pace=Pace(write_rows=3))

    def make(self, _: str, context: SinkContext) -> LinesSink:
        return LinesSink(context, self.trouble)


@pytest.fixture
def into_lines(monkeypatch):
    """A replay takes the signals of its process; here they are the tests' own."""
    monkeypatch.setattr("telemetry.commands.replay.signal.signal", lambda *_: None)
    return IntoLines()


def test_a_whole_journal_is_told_of_and_ends_with_0(tmp_path, capsys):
    """Events by kind and source, their steps, and that nothing is missing."""
    code = inspect(recorded(tmp_path))

    out = capsys.readouterr().out
    assert code == 0
    assert "8 rows" in out and "rank0" in out and "0 to 7" in out and "1.00" in out
    assert "missing: nothing" in out and "damage: none" in out


def test_behind_the_old_mark_of_a_power_cut_all_is_told_and_replayed(tmp_path, capsys, into_lines):
    """No sidecar has been there since: nobody has to start one to get at what is on disk."""
    run_dir = recorded(tmp_path)
    (segment,) = segments(run_dir / "journal")
    first = decode_segment_header(memoryview(segment.path.read_bytes()))
    assert first is not None
    (run_dir / "journal" / MARK_NAME).write_bytes(encode_mark(Mark(0, first.size, 0)))

    codes = inspect(run_dir), into_lines([run_dir], tmp_path / "out")

    assert codes == (0, EXIT_OK) and "8 rows" in capsys.readouterr().out
    assert lines(tmp_path / "out/r/lines.jsonl") == list(range(8))


def test_a_damaged_journal_ends_with_1_and_names_its_rows(tmp_path, capsys):
    """One flipped bit in the payload of the second last record. Row 8."""
    run_dir = recorded(tmp_path)
    size = segments(run_dir / "journal")[0].path.stat().st_size
    (segment,) = segments(run_dir / "journal")
    record = segment.path.read_bytes().rfind(b"\x1e\x7e")
    damage(run_dir, size - record + 5)

    code = inspect(run_dir)

    out = capsys.readouterr().out
    assert code == EXIT_DAMAGED
    assert "rows 4 to 5" in out and "damage: see above" in out


def test_a_missing_first_segment_ends_with_1(tmp_path, capsys):
    """The hole is named. Row 7."""
    run_dir = recorded(tmp_path)
    (segment,) = segments(run_dir / "journal")
    with JournalWriter(run_dir / "journal", segment_max_bytes=1) as writer:
        writer.append(RANK0, 8, 1, join_events([encode_event(metric(8), 1, 1)]))
        writer.sync()
        writer.append(RANK0, 9, 1, join_events([encode_event(metric(9), 1, 1)]))
        writer.sync()
    segment.path.unlink()

    code = inspect(run_dir)

    assert code == EXIT_DAMAGED and "rows 0 to 8" in capsys.readouterr().out


def test_what_producers_missed_is_told_by_kind_and_reason(tmp_path, capsys):
    """Every drop is counted."""
    run_dir = recorded(tmp_path)
    gap = Gap(count=3, by_kind={"train": 3}, reason="queue full", unknown_ms=12.0)
    with JournalWriter(run_dir / "journal") as writer:
        writer.append(RANK0, 8, 1, join_events([encode_event(gap, 1, 1)]))
        writer.sync()

    code = inspect(run_dir)

    out = capsys.readouterr().out
    assert code == 0 and "3 events of kind train: queue full" in out and "up to 0.1 seconds" in out


def test_what_was_left_out_of_events_is_named(tmp_path, capsys):
    """With its reason and how often; the rows themselves are there."""
    run_dir = recorded(tmp_path)
    partial = MetricsLogged(
        kind="train", step=9, values={"a": 1.0}, left_out={"b\x1b": "a tensor"}, left_out_count=1
    )
    with JournalWriter(run_dir / "journal") as writer:
        packed = [encode_event(partial, 1, 1)] * 2
        writer.append(RANK0, 8, 2, join_events(packed))
        writer.sync()

    code = inspect(run_dir)

    out = capsys.readouterr().out
    assert code == 0 and "left out: 2 values" in out and r"b\x1b: a tensor, 2 times" in out


@pytest.mark.parametrize("name", ["a [/b] c", "[red]x[/red]", "\x1b[2J", ":smile:", "a\nb"])
def test_a_name_is_text_whatever_it_looks_like(tmp_path, capsys, name):
    """No markup, and nothing that moves a terminal's cursor. Row 27."""
    code = inspect(recorded(tmp_path, name))

    out = capsys.readouterr().out
    assert code == 0 and "\x1b" not in out
    assert clean(name) in out


NONSENSE = {
    "no JSON": b"{",
    "no object": b"[1]",
    "brackets": b"[" * 100_000,
    "digits": b"9" * 5_000,
    "no text": bytes(range(256)),
    "types": b'{"run_id": "r", "name": [1], "state": 5, "as_of_row": "x", "status": {}}',
    "another id": b'{"run_id": "../r", "name": "n"}',
    "escapes": b'{"run_id": "r", "name": "n", "state": "\\u001b[2J"}',
    "empty": b"",
}


@pytest.mark.parametrize("content", NONSENSE)
@pytest.mark.parametrize(
    "name", ["run.json", "cursors/tensorboard.json", "cursors/tensorboard.state", "journal/durable"]
)
def test_a_small_file_of_any_content_is_told_as_damaged(tmp_path, capsys, name, content):
    """One clear line, 1, and what can be read is read. Row 44."""
    run_dir = recorded(tmp_path)
    (run_dir / "cursors").mkdir()
    (run_dir / name).write_bytes(NONSENSE[content])

    code = inspect(run_dir)

    out = capsys.readouterr().out
    is_sane_state = name.endswith((".json", ".state")) and content in ("types", "another id")
    is_sane_state = is_sane_state or (content == "escapes" and name != "journal/durable")
    assert "8 rows" in out and "\x1b" not in out
    if name == "run.json" or not is_sane_state:
        assert code == EXIT_DAMAGED and "damaged: " in out and Path(name).stem in out


def test_a_directory_in_the_place_of_a_small_file_is_told_as_damaged(tmp_path, capsys):
    """No traceback for what nobody expects. Row 44."""
    run_dir = recorded(tmp_path)
    for name in ("run.json", "journal/durable"):
        (run_dir / name).unlink()
        (run_dir / name).mkdir()

    code = inspect(run_dir)

    assert code == EXIT_DAMAGED and "8 rows" in capsys.readouterr().out


def test_the_journal_is_all_that_has_to_be_kept(tmp_path, capsys, into_lines):
    """What run.json said is learned from it again, also for a replay."""
    run_dir = introduced(tmp_path)
    for path in (run_dir / "run.json", run_dir / "journal" / MARK_NAME):
        path.unlink()
    kept = (run_dir / "journal").rename(tmp_path / "kept")
    shutil.rmtree(run_dir)
    (tmp_path / "archived").mkdir()
    kept.rename(tmp_path / "archived" / "journal")

    codes = (
        inspect(tmp_path / "archived"),
        into_lines([tmp_path / "archived"], tmp_path / "out"),
    )

    out = capsys.readouterr().out
    assert (
        codes == (0, EXIT_OK) and "run r (a name): 3 rows" in out and "failed, exit code 3" in out
    )
    assert lines(tmp_path / "out/archived/lines.jsonl") == list(range(3))
    assert not (tmp_path / "archived/run.json").exists()


def test_a_sink_is_said_to_have_all_only_where_it_has(tmp_path, capsys):
    """Not by a cursor in the middle, nor by one of an earlier end of the run."""
    run_dir = recorded(tmp_path)
    info = read_json(run_dir / "run.json")
    write_json(run_dir / "run.json", {**info, "endings": 2})
    cursor = {"run_id": "r", "state": {}, "done": True}
    (run_dir / "cursors").mkdir()
    write_json(run_dir / "cursors/console.json", {**cursor, "row": 3, "ending": 2})
    write_json(run_dir / "cursors/tensorboard.json", {**cursor, "row": 8, "ending": 1})
    write_json(run_dir / "cursors/wandb.json", {**cursor, "row": 8, "ending": 2})

    inspect(run_dir)

    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sink")]
    assert told[0] == "sink console: at row 3, 5 rows behind"
    assert "has all" not in told[1] and "has all of it" in told[2]


def test_rows_that_were_on_disk_once_and_are_cut_off_are_damage(tmp_path, capsys):
    """The mark promises them. Row 6."""
    run_dir = recorded(tmp_path)
    (segment,) = segments(run_dir / "journal")
    os.truncate(segment.path, segment.path.stat().st_size - 5)

    code = inspect(run_dir)

    assert code == EXIT_DAMAGED and "rows 6 to 7" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_what_is_no_journal_is_named_and_refused(tmp_path, what):
    """A command error, and 2."""
    path = tmp_path / what
    if what == "file":
        path.touch()
    elif what == "empty":
        path.mkdir()

    with pytest.raises(CommandError, match=what) as caught:
        inspect(path)

    assert caught.value.exit_code == 2


# --- replay


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_replay_counts_what_it_left_out_each_time(tmp_path, into_lines, capsys, is_cut):
    """A record with a flipped bit, or the end cut off: 1, and how many rows. Row 8."""
    run_dir = recorded(tmp_path)
    (segment,) = segments(run_dir / "journal")
    size = segment.path.stat().st_size
    if is_cut:
        os.truncate(segment.path, size - 5)
    else:
        damage(run_dir, size - segment.path.read_bytes().rfind(b"\x1e\x7e") + 5)

    codes = [into_lines([run_dir], tmp_path / "out") for _ in range(2)]

    assert codes == [EXIT_DAMAGED] * 2 and len(lines(tmp_path / "out/r/lines.jsonl")) == 6
    assert capsys.readouterr().err.count("r: 2 rows are damaged or gone and were left out") == 2


def test_two_runs_of_one_name_are_not_replayed_into_one_place(tmp_path, into_lines):
    """Their rows would mix."""
    first, second = recorded(tmp_path / "a"), recorded(tmp_path / "b")

    with pytest.raises(CommandError, match="have one name"):
        into_lines([first, second], tmp_path / "out")


def test_a_replay_carries_every_row_and_leaves_the_run_alone(tmp_path, into_lines):
    """Its files and its cursor are elsewhere."""
    run_dir = recorded(tmp_path)
    before = sorted(run_dir.rglob("*"))

    code = into_lines([run_dir], tmp_path / "out")

    assert code == EXIT_OK and lines(tmp_path / "out/r/lines.jsonl") == list(range(8))
    assert sorted(run_dir.rglob("*")) == before


def test_a_second_replay_doubles_nothing(tmp_path, into_lines):
    """Row 19."""
    run_dir = recorded(tmp_path)

    codes = [into_lines([run_dir], tmp_path / "out") for _ in range(2)]

    assert codes == [EXIT_OK] * 2 and lines(tmp_path / "out/r/lines.jsonl") == list(range(8))


@pytest.mark.parametrize("place", ["in write", "before commit", "after finish"])
def test_a_replay_that_was_killed_goes_on_without_a_double_row(tmp_path, into_lines, place):
    """Row 19."""
    run_dir = recorded(tmp_path)
    into_lines.trouble = Trouble(place)
    with pytest.raises(Killed):
        into_lines([run_dir], tmp_path / "out")
    into_lines.trouble = Trouble()

    code = into_lines([run_dir], tmp_path / "out")

    assert code == EXIT_OK and lines(tmp_path / "out/r/lines.jsonl") == list(range(8))


def test_a_journal_that_was_copied_elsewhere_can_be_replayed(tmp_path, into_lines):
    """A run's directory is all that it takes."""
    recorded(tmp_path).rename(tmp_path / "archived")

    code = into_lines([tmp_path / "archived"], tmp_path / "out")

    assert code == EXIT_OK
    assert lines(tmp_path / "out/archived/lines.jsonl") == list(range(8))


def test_with_one_bad_directory_no_run_is_touched(tmp_path, into_lines):
    """A typing error is found before an hour's work. Exit 2."""
    run_dir = recorded(tmp_path)

    with pytest.raises(CommandError, match="holds several runs") as caught:
        into_lines([run_dir, tmp_path], tmp_path / "out")

    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "telemetry", *words],
        capture_output=True, text=True, env=clean_env(),
    )  # fmt: skip


def test_an_unknown_sink_is_named_with_those_there_are(tmp_path):
    """Exit 2, and no traceback."""
    done = command("replay", str(recorded(tmp_path)), "--to", "excel")

    assert done.returncode == 2
    assert "'excel'" in done.stderr and "tensorboard" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_commands_end_as_their_functions_do(tmp_path):
    """0 for a whole journal, 2 for none; the console sink says what was recorded."""
    run_dir = recorded(tmp_path)

    whole, none = command("inspect", str(run_dir)), command("inspect", str(tmp_path))
    shown = command("replay", str(run_dir), "--to", "console", "--out", str(tmp_path / "out"))

    assert (whole.returncode, none.returncode, shown.returncode) == (0, 2, 0)
    assert "Traceback" not in none.stderr
    assert "loss" in shown.stdout and read_json(tmp_path / "out/r/cursors/console.json")["done"]
