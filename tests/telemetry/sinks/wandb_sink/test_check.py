"""A finished offline run is read back: what is gone from its files is told, not covered up."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from shared.events import RunFinished, RunStarted, encode_event, join_events
from shared.ids import StreamId
from telemetry.commands.inspect import inspect
from telemetry.journal.writer import JournalWriter
from telemetry.json_files import write_json
from telemetry.sinks.runner import Reporter, SinkJob, run_sink
from telemetry.sinks.wandb.check import missing_rows
from telemetry.sinks.wandb.wandb_file import HEADER, clean_records, holds_a_run, split_records
from telemetry.summary import unsynced_wandb_runs
from tests.telemetry.wire_client import metric

COUNT = 300


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that has ended, and is whole in W&B offline."""
    run_dir = tmp_path / "r"
    run_dir.mkdir()
    info = {"run_id": "r", "name": "n", "project": "p", "wandb_mode": "offline", "endings": 1}
    info |= {"state": "ended", "status": "finished", "exit_code": 0, "as_of_row": COUNT + 2}
    write_json(run_dir / "run.json", info)
    events = [RunStarted(project="p", name="n", wandb_mode="offline")]
    events += [metric(row) for row in range(COUNT)]
    events += [RunFinished(status="finished", exit_code=0)]
    with JournalWriter(run_dir / "journal") as writer:
        payload = join_events([encode_event(event, 1, 1) for event in events])
        writer.append(StreamId("r", "s1", "rank0"), 0, len(events), payload)
        writer.sync()
    job = SinkJob("wandb", run_dir, run_dir, False, {})
    assert run_sink(job, threading.Event(), Reporter(None)) == 0
    return run_dir


def the_file(run_dir: Path) -> Path:
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    return path


def test_a_whole_run_lacks_nothing(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And inspect says so."""
    assert missing_rows(run_dir) == ""
    assert inspect(run_dir) == 0
    assert "has all of it" in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_rows_that_are_gone_from_a_file_are_told(
    run_dir: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """By number; the run counts as damaged."""
    path = the_file(run_dir)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    left = sum(record.HasField("history") for record in clean_records(path))

    assert missing_rows(run_dir).startswith(f"{left:,} of {COUNT:,} rows are in")
    assert inspect(run_dir) == 1
    assert "has all of it" not in capsys.readouterr().out


def test_a_flipped_bit_is_told(run_dir: Path) -> None:
    """What is behind it can't be uploaded any more."""
    path = the_file(run_dir)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    assert f"of {COUNT:,} rows" in missing_rows(run_dir)


def test_files_that_are_gone_altogether_are_told(run_dir: Path) -> None:
    """Also where somebody has synced and removed them: they are not here."""
    shutil.rmtree(run_dir / "wandb")

    assert missing_rows(run_dir).startswith(f"0 of {COUNT:,} rows")


@pytest.mark.parametrize("content", [b"", HEADER, HEADER + b"\x00" * 20, b"something else"])
def test_an_empty_fragment_is_not_offered_for_upload(run_dir: Path, content: bytes) -> None:
    """`wandb sync` fails at it, and there is nothing in it."""
    whole = the_file(run_dir).parent
    empty = whole.with_name("offline-run-20200101_000000-r")
    empty.mkdir()
    (empty / "run-r.wandb").write_bytes(content)

    assert unsynced_wandb_runs(run_dir) == [whole]


def test_a_file_holds_a_run_from_the_record_on_that_names_it(run_dir: Path, tmp_path: Path) -> None:
    """Cut at every byte of its first two records."""
    data = the_file(run_dir).read_bytes()
    ends = [end for _, end in split_records(data[len(HEADER) :], len(HEADER))][:2]
    cut = tmp_path / "cut.wandb"
    for size in range(ends[1] + 1):
        cut.write_bytes(data[:size])
        assert holds_a_run(cut) == (size == ends[1])
