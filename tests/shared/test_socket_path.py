"""The path of a socket: short enough for the kernel, the same for all who ask, and private."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.socket_path import PATH_MAX_BYTES, fits, socket_path


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as name:
        yield Path(name)


def deep(place: Path) -> Path:
    return place / ("d" * 100) / "telemetry-data"


def test_it_is_in_the_data_directory_where_that_is_short(short):
    """Found without asking anybody."""
    assert socket_path(short / "data", {}) == short / "data" / "telemetry.sock"


def test_that_of_a_deep_data_directory_can_be_bound(short):
    """In a directory of this user's own, below the runtime directory."""
    path = socket_path(deep(short), {"XDG_RUNTIME_DIR": str(short)})

    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    assert path.is_relative_to(short) and fits(path)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_two_data_directories_have_two_and_one_has_one(short):
    """Also by a relative path, or through a link."""
    environ = {"XDG_RUNTIME_DIR": str(short)}
    (short / "link").symlink_to(deep(short))

    paths = [socket_path(p, environ) for p in (deep(short), short / "link", deep(short / "b"))]

    assert paths[0] == paths[1] != paths[2]


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_its_directory_is_private_under_any_umask(short, umask):
    """Nobody else can connect, and we can."""
    before = os.umask(umask)
    try:
        path = socket_path(deep(short), {"XDG_RUNTIME_DIR": str(short)})
    finally:
        os.umask(before)

    assert path.is_relative_to(short) and path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("trap", ["link", "file", "gone", "long"])
def test_what_can_not_be_trusted_or_used_is_passed_over(short, trap):
    """A link or a file that somebody else has put there; a directory that is not there."""
    runtime = short / ("r" * 80 if trap == "long" else "r")
    name = f"telemetry-{os.getuid()}"
    if trap != "gone":
        runtime.mkdir()
    if trap == "link":
        (short / "theirs").mkdir()
        (runtime / name).symlink_to(short / "theirs")
    elif trap == "file":
        (runtime / name).touch()

    path = socket_path(deep(short), {"XDG_RUNTIME_DIR": str(runtime)})

    assert not path.is_relative_to(runtime) and fits(path)


def test_the_limit_is_the_kernels():
    """One byte more is refused by it."""
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as name:
        longest = Path(name) / ("s" * (PATH_MAX_BYTES - len(name) - 1))
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(longest))
        with socket.socket(socket.AF_UNIX) as bound, pytest.raises(OSError, match="too long"):
            bound.bind(f"{longest}s")

    assert fits(longest) and not fits(Path(f"{longest}s"))
