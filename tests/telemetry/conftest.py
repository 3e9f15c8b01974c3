"""Fixtures of the sidecar's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import ManualClock
from tests.telemetry.wire_client import Station


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    """An ingest on a disk of its own, which is gone at the end as after a crash."""
    station = Station(tmp_path, ManualClock())
    yield station
    station.killed()
