"""What ingest may say while a disk takes nothing: each promise waits for the sync behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.events import ConfigUpdated, Gap
from telemetry.journal.writer import JournalFull, JournalWriter
from telemetry.json_files import read_json
from tests.telemetry.wire_client import (
    LOST_AFTER_S,
    Producer,
    Station,
    acks,
    finished,
    metric,
    started,
)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A disk that `fill` makes full, and `undo` makes room on."""
    yield monkeypatch
    monkeypatch.undo()


def fill(disk: pytest.MonkeyPatch) -> None:
    def failing(writer: JournalWriter) -> None:
        raise JournalFull("full")

    disk.setattr(JournalWriter, "sync", failing)


def begun(station: Station, **place: object) -> Producer:
    producer = Producer(station, **place)
    producer.hello()
    producer.emit(started())
    station.ingest.commit()
    return producer


def run_json(station: Station) -> dict[str, object]:
    return read_json(station.path / "runs" / "r" / "run.json") or {}


@pytest.mark.parametrize(("source", "session"), [("rank0", "s1"), ("hardware:node1", "sampler")])
def test_a_reconnect_is_not_told_that_unsynced_rows_are_on_disk(
    station: Station, full_disk: pytest.MonkeyPatch, source: str, session: str
) -> None:
    """Row 11: neither by the answer to HELLO nor by the next commit; with room it is."""
    begun(station)
    old = Producer(station, session, source=source, peer=b"old")
    old.hello()
    first = old.next_seq
    fill(full_disk)
    old.emit(metric(1))
    assert acks(old.committed()) == []
    new = Producer(station, session, source=source, peer=b"new")

    new.hello()

    assert new.next_seq == first + 1
    assert max(acks(new.replies), default=-1) < first
    assert max(acks(new.committed()), default=-1) < first
    full_disk.undo()
    assert acks(new.committed()) == [first]


def test_run_json_waits_for_the_sync_of_what_it_says(
    station: Station, full_disk: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves a run.json that knows of rows which never were."""
    producer = begun(station)
    before = run_json(station)
    fill(full_disk)
    producer.emit(ConfigUpdated(config={"layers": 4}), finished())

    station.settle()

    assert run_json(station) == before
    full_disk.undo()
    station.settle()
    assert run_json(station)["config"] == {"layers": 4}


def test_a_config_that_is_the_last_word_is_in_run_json(station: Station) -> None:
    """No later event brings the next write."""
    producer = begun(station)
    producer.emit(ConfigUpdated(config={"layers": 4}))

    station.ingest.commit()

    assert run_json(station)["config"] == {"layers": 4}
    assert run_json(station)["as_of_row"] == 2


def test_a_gap_that_a_hello_tells_is_not_lost_with_a_full_disk(
    station: Station, full_disk: pytest.MonkeyPatch
) -> None:
    """The run has ended and the producer goes away again at once: it is not closed before
    the Gap is on disk."""
    producer = begun(station)
    producer.emit(finished())
    producer.fin()
    station.settle()
    assert station.runs.get("r") is None
    fill(full_disk)

    Producer(station, peer=b"late", late=True).hello(first_seq=9)
    for _ in range(4):
        station.wait(LOST_AFTER_S)
        station.settle()
    full_disk.undo()
    station.settle()

    gaps = [event for event in station.events() if isinstance(event, Gap)]
    assert [gap.count for gap in gaps] == [7]
