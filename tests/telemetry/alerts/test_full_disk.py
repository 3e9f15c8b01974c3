"""Alerts on a disk without room: told at once, recorded when there is room, or counted."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.emitter import Emitter
from shared.events import AlertChanged, MetricsLogged, RunStarted
from telemetry.alerts.rules import read_rules
from telemetry.alerts.telling import Message, Telling
from telemetry.alerts.verdicts import CLEAR_S
from telemetry.alerts.watcher import Watcher
from telemetry.watch.facts import RunFacts, Situation
from telemetry.watch.feed import FedAlert, Feed
from tests.fakes import ManualClock
from tests.telemetry.alerts.test_webhook import Receiver
from tests.telemetry.sidecar_process import SidecarProcess, clean_env, http_get
from tests.telemetry.waiting import wait_until
from tests.telemetry.wire_client import read_rows

DISK = {"source": "sidecar", "name": "disk_nearly_full", "subject": "disk"}


class Told:
    """A watcher over a situation that the test sets."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.told: list[Message] = []
        self.feed = Feed()
        self.situation = Situation()
        telling = Telling([self.told.append])
        self.watcher = Watcher(
            self.feed, lambda: self.situation, self.clock, read_rules(""), telling
        )

    def turn(
        self, *, free_bytes: int, is_writable: bool, silent_s: float = 0.0, alerts: tuple = ()
    ) -> None:
        run = RunFacts("r", is_started=True, silent_s=silent_s, alerts=alerts)
        self.situation = Situation((run,), (), free_bytes, is_writable)
        self.clock.advance(1)
        self.watcher.poll()

    @property
    def said(self) -> list[tuple[str, str, bool]]:
        return [(run_id, event.name, event.is_active) for run_id, _, event in self.told]


FULL = ("", "disk_nearly_full", True)
SILENT = ("r", "trainer_silent", True)


def test_without_room_an_alert_is_told_though_no_journal_can_have_it():
    """Of the machine and of a run, once each."""
    watch = Told()
    for _ in range(3):
        watch.turn(free_bytes=0, is_writable=False, silent_s=60)

    assert sorted(watch.said) == [FULL, SILENT]
    assert [(a.run_id, a.name, a.severity) for a in watch.watcher.unrecorded] == [
        ("", "disk_nearly_full", "warning"),
        ("r", "trainer_silent", "error"),
    ]
    assert watch.watcher.counts == {"disk_nearly_full": 1, "trainer_silent": 1}


def test_with_room_again_what_still_holds_is_recorded_and_not_told_again():
    """Its end is told when it is journaled."""
    watch = Told()
    watch.turn(free_bytes=0, is_writable=False)
    onset = AlertChanged(name="disk_nearly_full", subject="disk")
    end = AlertChanged(name="disk_nearly_full", subject="disk", is_active=False)
    watch.feed._put_alert(FedAlert("r", "s", "sidecar", onset))
    watch.turn(free_bytes=0, is_writable=True, alerts=(DISK,))
    told = list(watch.said)
    watch.feed._put_alert(FedAlert("r", "s", "sidecar", end))
    watch.turn(free_bytes=10**12, is_writable=True)

    assert told == [FULL] and watch.said[1:] == [("", "disk_nearly_full", False)]
    assert (watch.watcher.unrecorded, watch.watcher.not_recorded) == ((), 0)


def test_what_was_over_before_there_was_room_is_told_and_counted():
    """No journal will ever have it."""
    watch = Told()
    watch.turn(free_bytes=10**12, is_writable=False, silent_s=60)
    for _ in range(int(CLEAR_S) + 2):
        watch.turn(free_bytes=10**12, is_writable=False, silent_s=0)

    assert watch.said == [SILENT, ("r", "trainer_silent", False)]
    assert watch.told[1][2].lasted_s == pytest.approx(CLEAR_S + 1, abs=1)
    assert (watch.watcher.unrecorded, watch.watcher.not_recorded) == ((), 1)


def test_with_room_the_journal_goes_first():
    """What is told then is what was recorded."""
    watch = Told()
    watch.turn(free_bytes=0, is_writable=True, silent_s=60)

    assert watch.said == [] and watch.watcher.unrecorded == ()


# --- with a real sidecar on a small file system


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting takes root")
    point = tmp_path / "small"
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(point)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no mount here")
    yield point
    subprocess.run(["umount", "--lazy", str(point)], check=True)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def fill(place: Path) -> Path:
    """Fill a file system to its last byte."""
    path = place / "ballast"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(65536)):
                pass
        except OSError:
            logging.getLogger(__name__).info("full")
    return path


def test_a_full_disk_is_told_by_log_metrics_and_webhook_and_recorded_later(
    small, tmp_path, receiver
):
    """The sidecar goes on meanwhile, and so does the trainer."""
    flags = "--http=127.0.0.1:0", "--min-free-bytes=2000000", "--sample-hz=0", "--sinks="
    rules = '--alerts={"disk_nearly_full": {"free_bytes": 2e6}}'
    env = clean_env(TELEMETRY_ALERT_WEBHOOK=receiver.url)
    sidecar = SidecarProcess(small / "data", *flags, rules, env=env)
    sidecar.log_path = tmp_path / "sidecar.log"
    active = r'telemetry_alert_active\{.*name="disk_nearly_full",run_id="",.*\} 1.0'
    with (
        sidecar,
        Emitter(
            sidecar.endpoint, run_id="r", source="rank0", spool_dir=tmp_path / "spool"
        ) as emitter,
    ):
        emitter.emit(RunStarted(project="p", name="n", host="h"))
        emitter.emit(MetricsLogged(kind="train", step=1, values={"train/loss": 1.0}))
        (address,) = wait_until(lambda: re.findall(r"http://([\d.]+:\d+)", sidecar.log))
        wait_until(lambda: "training_loss{" in http_get(address, "/metrics")[1])
        ballast = fill(small)
        emitter.emit(MetricsLogged(kind="train", step=2, values={"train/loss": 0.9}))
        wait_until(lambda: "disk_nearly_full" in receiver.names())
        wait_until(lambda: re.search(active, http_get(address, "/metrics")[1]))
        wait_until(lambda: "disk_nearly_full disk" in sidecar.log)
        full = http_get(address, "/readyz"), http_get(address, "/livez")[0]
        ballast.unlink()
        # With room again: the event, and the alert, which holds for CLEAR_S longer.
        wait_until(lambda: len(_alerts(small)) == 2, 60)
        wait_until(lambda: receiver.names().count("disk_nearly_full") == 2)
        text = http_get(address, "/metrics")[1]

    assert full == ((503, "no room on disk\n"), 200)
    assert [event.is_active for event in _alerts(small)] == [True, False]
    assert _alerts(small)[1].lasted_s > 0
    assert 'telemetry_alerts_total{name="disk_nearly_full"} 1.0' in text
    assert "telemetry_alerts_not_recorded_total 0.0" in text and not re.search(active, text)


def _alerts(place: Path) -> list[AlertChanged]:
    events = [row.envelope.event() for row in read_rows(place / "data/runs/r")]
    return [event for event in events if isinstance(event, AlertChanged)]
