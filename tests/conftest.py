"""What all tests share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Other work shares these cores: a slow example is not a failed one.
settings.register_profile(
    "shared_cores", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared_cores")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a path short enough for an ipc socket in it."""
    with tempfile.TemporaryDirectory(prefix="tm-", dir="/tmp") as name:
        yield Path(name)
