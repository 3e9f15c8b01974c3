"""Alerts in the journal: each onset and end once, whatever is killed in between."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.events import AlertChanged
from telemetry.alerts.recording import Published, record
from telemetry.alerts.telling import Message, Telling
from telemetry.alerts.verdicts import CLEAR_S, HOST, Active, Conditions, Key, Verdict
from telemetry.json_files import read_json
from telemetry.watch.feed import FedAlert
from tests.fakes import ManualClock
from tests.telemetry.sidecar_process import SidecarProcess, clean_env, http_get
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import Producer, Station, metric, read_rows, started

TRAINER = """
import sys, time
from shared.emitter import Emitter
from shared.events import MetricsLogged, RunStarted
emitter = Emitter(sys.argv[1], run_id="r", source="rank0", spool_dir=sys.argv[2])
emitter.emit(RunStarted(project="p", name="n", wandb_mode="disabled"))
step = 0
while True:
    step += 1
    emitter.emit(MetricsLogged(kind="train", step=step, values={"train/loss": 1.0}))
    time.sleep(0.05)
"""


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    station = Station(tmp_path, ManualClock())
    yield station
    station.killed()


def published(*active: Key, over: tuple[Key, ...] = (), lasted_s: float | None = None) -> Published:
    found = {key: Active(Verdict(key, True, "bad", 1.5, "error"), 1) for key in active}
    return Published(found, dict.fromkeys(over, lasted_s))


def turn(station: Station, now: Published, host_runs: tuple[str, ...] = ("r",)) -> None:
    record(now, station.runs, lambda run: run.run_id in host_runs, station.clock.wall / 1e9)
    station.ingest.commit()


def alerts(station: Station, run_id: str = "r") -> list[tuple[str, bool]]:
    return [(e.name, e.is_active) for e in station.events(run_id) if isinstance(e, AlertChanged)]


def begun(station: Station, run_id: str = "r") -> None:
    producer = Producer(station, "s1", run_id=run_id, peer=run_id.encode())
    producer.hello()
    producer.emit(started(), metric(0))
    station.ingest.commit()


SILENT = Key("r", "trainer_silent", "rank0")
DISK = Key(HOST, "disk_nearly_full", "disk")


def test_an_onset_and_an_end_are_written_once_each(station):
    """However many turns see them."""
    begun(station)
    for _ in range(3):
        turn(station, published(SILENT))
    for _ in range(3):
        turn(station, published(over=(SILENT,)))

    assert alerts(station) == [("trainer_silent", True), ("trainer_silent", False)]


def test_a_restart_writes_no_second_onset_and_keeps_an_end_for_later(station):
    """The next sidecar knows nothing at first: it neither repeats nor ends the alert."""
    begun(station)
    turn(station, published(SILENT))
    again = station.restarted()
    again.runs.note_unfinished()
    again.runs.open_noted(10)
    turn(again, published())
    turn(again, published(SILENT))
    turn(again, published(over=(SILENT,)))

    assert alerts(again) == [("trainer_silent", True), ("trainer_silent", False)]
    again.killed()


def lasted(station: Station, run_id: str = "r") -> list[float | None]:
    said = [e for e in station.events(run_id) if isinstance(e, AlertChanged)]
    return [event.lasted_s for event in said if not event.is_active]


def test_an_end_says_how_long_the_condition_lasted(station):
    """As the sidecar that saw both measured it, whatever the wall clock did meanwhile."""
    begun(station)
    turn(station, published(SILENT))
    station.clock.wall -= 3600 * 10**9
    turn(station, published(over=(SILENT,), lasted_s=12.5))

    assert lasted(station) == [12.5]


def test_an_end_after_a_restart_is_measured_by_the_wall_clock(station):
    """The onset's time is in run.json; a clock that was set back before it tells nothing."""
    begun(station)
    turn(station, published(SILENT, DISK))
    station.wait(90)
    again = station.restarted()
    turn(again, published(over=(SILENT,)))
    again.clock.wall -= 3600 * 10**9
    turn(again, published(over=(DISK,)))

    assert lasted(again) == [90.0, None]
    again.killed()


def test_a_condition_that_was_active_knows_for_how_long():
    """From its onset to its end, by the monotonic clock."""
    conditions = Conditions()
    for second in range(1, 40):
        conditions.take([Verdict(DISK, second < 21)], frozenset(), second * 10**9)

    assert conditions.over() == {DISK: 20 + CLEAR_S}


def test_an_alert_of_the_machine_is_in_every_active_run_and_ends_in_each(station):
    """A run that begins meanwhile has its onset too; one of another run has not."""
    begun(station)
    turn(station, published(DISK, SILENT))
    begun(station, "other")
    turn(station, published(DISK, SILENT), ("r", "other"))
    turn(station, published(over=(DISK,)), ("other",))

    assert alerts(station, "other") == [("disk_nearly_full", True), ("disk_nearly_full", False)]
    assert alerts(station).count(("disk_nearly_full", False)) == 1


def test_nothing_is_written_into_a_run_that_has_ended(station):
    """Or into one that has no name yet."""
    begun(station)
    run = station.runs.open("r")
    run.end()
    turn(station, published(SILENT))

    assert alerts(station) == []


# --- telling


def test_each_change_is_told_once_though_several_runs_have_it():
    """Of the machine; two runs with the same trouble of their own are two."""
    told: list[Message] = []
    telling = Telling([told.append])
    hot = AlertChanged(name="gpu_throttled", subject="gpu/0")
    cool = AlertChanged(name="gpu_throttled", subject="gpu/0", is_active=False)
    for event in (hot, hot, cool, cool):
        for run in ("a", "b"):
            telling.take(FedAlert(run, "s", "hardware:n1", event))
    for run in ("a", "b"):
        silent = AlertChanged(name="trainer_silent", subject="rank0")
        telling.take(FedAlert(run, "s", "sidecar", silent))

    assert [(run, event.is_active) for run, _, event in told] == [
        ("", True), ("", False), ("a", True), ("b", True),
    ]  # fmt: skip
    assert telling.counts == {"gpu_throttled": 1, "trainer_silent": 2}


def test_an_end_that_a_former_sidecar_began_is_told():
    """Somebody was told of its onset."""
    told: list[Message] = []
    event = AlertChanged(name="trainer_silent", is_active=False)
    Telling([told.append]).take(FedAlert("r", "s", "sidecar", event))

    assert len(told) == 1


# --- with real processes


def test_a_trainer_that_is_killed_fires_once_though_the_sidecar_is_killed_too(tmp_path):
    """And a new trainer ends it. The alert is in run.json, the log and /metrics meanwhile."""
    rules = '--alerts={"trainer_silent": {"unheard_s": 6.5}, "tpyo": {}}'
    sidecar = SidecarProcess(tmp_path / "data", rules, "--http=127.0.0.1:0", "--lost-after-s=600")
    command = [sys.executable, "-c", TRAINER, sidecar.endpoint, str(tmp_path / "spool")]
    run_file = tmp_path / "data/runs/r/run.json"

    def standing() -> list[str]:
        return [a["name"] for a in (read_json(run_file) or {}).get("alerts") or []]

    with sidecar:
        trainer = subprocess.Popen(command, env=clean_env())
        wait_until(run_file.exists)
        trainer.kill()
        trainer.wait()
        wait_until(lambda: "trainer_silent" in standing(), 60)
        (address,) = re.findall(r"status on http://([\d.]+:\d+)", sidecar.log)
        active = r'telemetry_alert_active\{.*name="trainer_silent".*\} 1.0'
        wait_until(lambda: re.search(active, http_get(address, "/metrics")[1]))
        assert "alerts.tpyo: no such rule" in sidecar.log
        wait_until(lambda: "trainer_silent rank0" in sidecar.log)
        # Killed and started again: nothing is repeated, and nothing is over yet.
        sidecar.kill()
        sidecar.start()
        trainer = subprocess.Popen(command, env=clean_env())
        wait_until(lambda: "trainer_silent" not in standing(), 60)
        trainer.kill()
        trainer.wait()

    rows = read_rows(tmp_path / "data/runs/r")
    said = [e for row in rows if isinstance(e := row.envelope.event(), AlertChanged)]
    assert [event.is_active for event in said if event.name == "trainer_silent"] == [True, False]
    (lasted_s,) = [event.lasted_s for event in said if not event.is_active]
    assert 0 < lasted_s < 120
