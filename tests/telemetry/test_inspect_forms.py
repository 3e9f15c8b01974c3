"""`inspect --json`, `--at-step` and `--follow`: what scripts and agents read."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from shared.emitter import Emitter
from shared.events import (
    HistogramLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
    encode_event,
    join_events,
)
from shared.ids import StreamId
from telemetry.cli import main
from telemetry.commands.follow_rows import follow
from telemetry.errors import CommandError
from telemetry.journal.layout import segments
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json
from tests.telemetry.monitor.runs import samples, training, write_rows, write_run_file
from tests.telemetry.sidecar_process import SidecarProcess, clean_env
from tests.telemetry.test_inspect import damage, introduced, recorded
from tests.telemetry.waiting import wait_until

FIELDS = {
    "version", "run", "path", "name", "project", "host", "group", "tags", "state", "status",
    "exit_code", "started_s", "rows", "bytes", "events", "missing", "unknown_ms", "left_out",
    "left_out_count", "goodput", "last_words", "sinks", "damaged", "damage", "is_damaged",
}  # fmt: skip


def inspected(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, list[Any], str]:
    code = main(["inspect", *map(str, args), "--json"])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_a_run_as_json_says_what_the_tables_say(tmp_path, capsys) -> None:
    """With the fields that the page of formats promises, each of them always there."""
    run_dir = recorded(tmp_path)

    code, (shown,), _ = inspected(capsys, run_dir)

    assert code == 0 and shown.keys() == FIELDS and shown["version"] == 1
    assert (shown["run"], shown["rows"], shown["state"], shown["status"]) == (
        "r", 8, "ended", "finished",
    )  # fmt: skip
    assert shown["events"] == [
        {
            "source": "rank0", "kind": "train", "sessions": 1, "count": 8, "per_second": 1.0,
            "first_s": 10**9, "last_s": 10**9 + 7, "first_step": 0, "last_step": 7,
        }
    ]  # fmt: skip
    assert shown["damage"] == [] and shown["is_damaged"] is False


def test_every_field_is_in_the_page_of_formats(tmp_path, capsys) -> None:
    """A field that nobody can read of is not stable."""
    _, (shown,), _ = inspected(capsys, recorded(tmp_path))
    page = (Path(__file__).parents[2] / "docs/FORMATS.md").read_text()
    section = page.partition("## A run as JSON")[2].partition("\n## ")[0]

    for name in (*shown, *shown["events"][0], "rows_behind", "has_all", "first_row", "next_row"):
        assert name in section


def test_several_runs_are_a_line_each_and_the_worst_decides_the_exit_code(tmp_path, capsys) -> None:
    """A damaged one does not hide the others; one that is none stops it before."""
    good, bad = recorded(tmp_path / "a"), recorded(tmp_path / "b")
    (segment,) = segments(bad / "journal")
    size = segment.path.stat().st_size
    damage(bad, size - segment.path.read_bytes().rfind(b"\x1e\x7e") + 5)
    (bad / "cursors").mkdir()
    write_json(bad / "cursors" / "x.json", {"run_id": "r", "row": "x", "state": {}})

    code, shown, _ = inspected(capsys, good, bad, good)
    none, nothing, err = inspected(capsys, good, tmp_path / "nope")

    assert code == 1 and [each["is_damaged"] for each in shown] == [False, True, False]
    assert shown[1]["damage"][0]["kind"] == "damaged payload" and shown[1]["damaged"]
    assert none == 2 and nothing == [] and "there is no" in err


def test_sinks_and_hostile_names_are_told_as_they_are(tmp_path, capsys) -> None:
    """JSON escapes what a terminal would obey."""
    run_dir = recorded(tmp_path, name="\x1b[2J\u2028")
    (run_dir / "cursors").mkdir()
    write_json(
        run_dir / "cursors" / "wandb.json",
        {"run_id": "r", "row": 5, "state": {"left_out": 2}, "done": False, "ending": 0},
    )
    write_json(
        run_dir / "cursors" / "wandb.state", {"state": "killed", "detail": "\x1b", "restarts": 3}
    )

    main(["inspect", str(run_dir), "--json"])

    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert json.loads(out)["name"] == "\x1b[2J\u2028"
    assert json.loads(out)["sinks"] == [
        {
            "sink": "wandb", "row": 5, "rows_behind": 3, "has_all": False, "restarts": 3,
            "skipped": 0, "left_out": 2, "state": "killed", "detail": "\x1b",
        }
    ]  # fmt: skip


# --- one step


def stepped(directory: Path) -> Path:
    """Steps 2, 4, ... 10 of two ranks; the run went back from 10 to 8 once."""
    run_dir = directory / "runs" / "r"
    steps = [2, 4, 6, 8, 10]
    write_rows(run_dir, [RunStarted(project="p", name="n", host="node1")])
    write_rows(run_dir, [metrics(step, 10 - step) for step in steps], seq=1)
    write_rows(run_dir, [metrics(step, 0.5, "rank/1/step_seconds") for step in steps], "rank1", "t")
    write_rows(run_dir, samples(2), "hardware:node1", "h")
    write_rows(run_dir, [RunStarted(resumed_from_step=8), metrics(10, 0.25)], session="s2")
    histogram = HistogramLogged(kind="quant", step=10, name="w", edges=[0, 1, 2], counts=[3, 4])
    write_rows(run_dir, [histogram], session="s2", seq=2)
    write_run_file(run_dir, state="ended", status="finished")
    return run_dir


def metrics(step: int, value: float, name: str = "train/loss") -> MetricsLogged:
    return MetricsLogged(kind="train", step=step, values={name: value})


def test_the_values_of_a_step_are_those_of_all_sources_and_sessions(tmp_path, capsys) -> None:
    """A step that was done again has its rows twice, in the order of the journal."""
    code, (shown,), _ = inspected(capsys, stepped(tmp_path), "--at-step", 10)

    values = [
        (each["source"], each["session"], each["name"], each["value"])
        for each in shown["values"]
        if each["name"] != "train/global_step"
    ]
    assert code == 0 and shown["is_found"] and shown["nearest"] == [8, None]
    assert values == [
        ("rank0", "s1", "train/loss", 0.0),
        ("rank1", "t", "rank/1/step_seconds", 0.5),
        ("rank0", "s2", "train/loss", 0.25),
    ]
    (histogram,) = shown["histograms"]
    assert (histogram["name"], histogram["edges"], histogram["counts"]) == ("w", [0, 1, 2], [3, 4])


def test_a_step_as_a_table_names_its_restart(tmp_path, capsys) -> None:
    """For a person at a terminal."""
    code = main(["inspect", str(stepped(tmp_path)), "--at-step", "10"])

    out = capsys.readouterr().out
    assert code == 0 and "step 10, done 2 times" in out and "rank/1/step_seconds" in out
    assert "0.25" in out and "7 values" in out


@pytest.mark.parametrize(
    ("step", "nearest"), [(5, [4, 6]), (1, [None, 2]), (99, [10, None]), (-3, [None, 2])]
)
def test_a_step_that_is_not_there_is_said_with_the_nearest(tmp_path, capsys, step, nearest) -> None:
    """Exit code 2, in both forms."""
    run_dir = stepped(tmp_path)

    code, (shown,), _ = inspected(capsys, run_dir, "--at-step", step)
    text_code = main(["inspect", str(run_dir), "--at-step", str(step)])

    err = capsys.readouterr().err
    assert code == text_code == 2 and shown["is_found"] is False and shown["nearest"] == nearest
    near = " and ".join(str(each) for each in nearest if each is not None)
    assert f"has no step {step}; the nearest are {near}" in err


def test_a_run_without_steps_says_so(tmp_path, capsys) -> None:
    """A run of the host's own has hardware alone."""
    run_dir = tmp_path / "r"
    write_rows(run_dir, samples(3), "hardware:h", "s")
    write_run_file(run_dir)

    assert main(["inspect", str(run_dir), "--at-step", "1"]) == 2
    assert "no step is recorded" in capsys.readouterr().err


# --- rows as they come


class Lines:
    """A follower in a thread, and the rows that it has printed."""

    def __init__(self, run_dir: Path, first_row: int | None, monkeypatch: pytest.MonkeyPatch):
        self.out = io.StringIO()
        monkeypatch.setattr(sys, "stdout", self.out)
        self.codes: list[int] = []
        self.looks = 0
        self._thread = threading.Thread(target=self._run, args=(run_dir, first_row))
        self._thread.start()

    def _run(self, run_dir: Path, first_row: int | None) -> None:
        self.codes.append(follow(run_dir, first_row, is_json=True, wait=self._wait))

    def _wait(self, _: float) -> None:
        self.looks += 1
        threading.Event().wait(0.005)

    @property
    def rows(self) -> list[int]:
        return [json.loads(line)["row"] for line in self.out.getvalue().splitlines()]

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


def append(writer: JournalWriter, rows: range) -> None:
    for row in rows:
        packed = join_events([encode_event(metrics(row, 1.0), 10**18, 1)])
        writer.append(StreamId("r", "s1", "rank0"), row, 1, packed)
    writer.sync()


def test_rows_are_followed_through_rotation_and_a_restart_to_the_end(tmp_path, monkeypatch) -> None:
    """Each once, in order, from the one that is next; it ends by itself when all are out."""
    run_dir = tmp_path / "r"
    write_run_file(run_dir.absolute() if run_dir.mkdir() is None else run_dir)
    with JournalWriter(run_dir / "journal", segment_max_bytes=300) as writer:
        append(writer, range(5))
        lines = Lines(run_dir, None, monkeypatch)
        wait_until(lambda: lines.looks > 1)
        append(writer, range(5, 25))
        wait_until(lambda: len(lines.rows) == 20)
    with JournalWriter(run_dir / "journal", segment_max_bytes=300) as writer:
        append(writer, range(25, 45))
        wait_until(lambda: len(lines.rows) == 40)
        looks = lines.looks
        wait_until(lambda: lines.looks > looks + 1)
        assert not lines.codes
        append(writer, range(45, 50))
        write_run_file(run_dir, state="ended", status="finished")
        lines.join()

    assert lines.codes == [0] and lines.rows == list(range(5, 50))
    assert len(segments(run_dir / "journal")) > 3


def test_what_is_not_on_disk_yet_is_not_printed(tmp_path, monkeypatch) -> None:
    """A power cut could take it back."""
    run_dir = tmp_path / "r"
    run_dir.mkdir()
    write_run_file(run_dir)
    with JournalWriter(run_dir / "journal") as writer:
        append(writer, range(3))
        packed = join_events([encode_event(metrics(3, 1.0), 1, 1)])
        writer.append(StreamId("r", "s1", "rank0"), 3, 1, packed)
        lines = Lines(run_dir, 0, monkeypatch)
        wait_until(lambda: lines.looks > 3)
        before = lines.rows
        writer.sync()
        wait_until(lambda: len(lines.rows) == 4)
        write_run_file(run_dir, state="ended", status="finished")
        lines.join()

    assert before == [0, 1, 2]


def test_an_ended_run_is_printed_from_a_row_on_and_ends(tmp_path, capsys) -> None:
    """As lines for a person: every kind of event, and no control character."""
    run_dir = introduced(tmp_path)
    hostile = MetricsLogged(kind="custom", values={"a\x1b[2J": "b\x07"})
    write_rows(run_dir, [hostile], session="s2")
    write_json(run_dir / "run.json", {"run_id": "r", "name": "n", "state": "ended"})

    code = main(["inspect", str(run_dir), "--follow", "--from-row", "1"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0 and len(lines) == 3 and "train" in lines[0] and "failed" in lines[1]
    assert "a\\x1b[2J b\\x07" in lines[2] and all(line.isprintable() for line in lines)


def test_a_run_that_is_removed_meanwhile_ends_it_with_one_line(tmp_path, monkeypatch) -> None:
    """Nothing will come of it any more."""
    run_dir = tmp_path / "r"
    write_rows(run_dir, training(3))
    write_run_file(run_dir)

    def remove(_: float) -> None:
        run_dir.rename(tmp_path / "gone")

    with pytest.raises(CommandError, match="removed meanwhile"):
        follow(run_dir, None, is_json=False, wait=remove)


def test_ctrl_c_ends_it_cleanly(tmp_path) -> None:
    """Exit code 130, without a traceback, and what was printed is whole lines."""
    run_dir = tmp_path / "r"
    write_rows(run_dir, training(3))
    write_run_file(run_dir)
    command = [sys.executable, "-m", "telemetry", "inspect", str(run_dir)]
    process = subprocess.Popen(
        [*command, "--follow", "--json", "--from-row", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_env(),
    )  # fmt: skip
    assert process.stdout is not None
    shown = [json.loads(process.stdout.readline())["event"] for _ in range(4)]

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert process.returncode == 130 and err == "" and out == ""
    assert shown == ["run_started", "metrics", "metrics", "metrics"]


@pytest.mark.parametrize(
    "args",
    [
        ["a", "b", "--follow"], ["a", "b", "--at-step", "1"], ["a", "--follow", "--repair"],
        ["a", "--from-row", "1"], ["a", "--follow", "--from-row", "-1"],
    ],
)  # fmt: skip
def test_forms_that_exclude_one_another_are_one_line(capsys, args) -> None:
    """Exit code 2."""
    assert main(["inspect", *args]) == 2
    assert capsys.readouterr().err.startswith("telemetry: inspect: ")


def test_looking_at_a_directory_that_can_t_be_written_changes_nothing(tmp_path, capsys) -> None:
    """In every form; the journal's bytes and times stay."""
    run_dir = stepped(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    for path in (run_dir, run_dir / "journal"):
        path.chmod(0o500)
    try:
        codes = [
            main(["inspect", str(run_dir), *form])
            for form in ([], ["--json"], ["--at-step", "4"], ["--follow", "--from-row", "0"])
        ]
        codes.append(main(["ls", str(tmp_path)]))
    finally:
        for path in (run_dir, run_dir / "journal"):
            path.chmod(0o700)

    assert codes == [0] * 5
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["r"]


def test_rows_of_a_live_sidecar_come_while_it_works_and_after_kill_9(place) -> None:
    """The real processes: follower, sidecar and producer. Each row once, to the end of the run."""
    run_dir = place / "d" / "runs" / "r"
    with SidecarProcess(place / "d") as sidecar:
        emitter = Emitter(sidecar.endpoint, run_id="r", spool_dir=place / "s")
        emitter.emit(RunStarted(project="p", name="n"))
        wait_until(lambda: (run_dir / "run.json").exists())
        command = [sys.executable, "-m", "telemetry", "inspect", str(run_dir), "--json"]
        follower = subprocess.Popen(
            [*command, "--follow", "--from-row", "0"], stdout=subprocess.PIPE, text=True,
            env=clean_env(),
        )  # fmt: skip
        shown = [follower.stdout.readline()]
        emitter.emit(metrics(1, 1.0))
        shown.append(follower.stdout.readline())
        sidecar.kill()
        emitter.emit(metrics(2, 1.0))
        sidecar.start()
        emitter.emit(RunFinished(status="finished"))
        assert emitter.close(60)
        rest, _ = follower.communicate(timeout=60)

    rows = [json.loads(line) for line in (*shown, *rest.splitlines())]
    assert follower.returncode == 0 and [each["row"] for each in rows] == list(range(len(rows)))
    of_rank0 = [each["event"] for each in rows if each["source"] == "rank0"]
    assert of_rank0 == ["run_started", "metrics", "metrics", "run_finished"]
