"""What the tests of the hardware share: libraries in place of NVIDIA's, compiled once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import ManualClock
from tests.telemetry.hardware.fake_nvml import Machine, compiled


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a libnvidia-ml.so.1 like that of a driver of today."""
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one that lacks the functions of the last years."""
    return compiled(tmp_path_factory.mktemp("old_nvml"), is_old_driver=True)


@pytest.fixture
def machine(nvml_library: Path, tmp_path: Path) -> Machine:
    """A machine whose GPUs are as the test says."""
    return Machine(nvml_library, tmp_path)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def reports() -> list[tuple[str, str]]:
    """What the part under test has said to people."""
    return []
