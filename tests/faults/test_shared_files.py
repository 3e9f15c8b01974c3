"""Files and directories that are put in place whole, with the power cut at every call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.files import make_directory, write_atomically, write_directory_atomically
from tests.faults.crash_points import cut_everywhere

CONTENT = {"weights": b"w" * 300, "config": b"c" * 70}
Promises = dict[str, Any]


def fill(directory: Path) -> None:
    for name, content in CONTENT.items():
        (directory / name).write_bytes(content)


def put_directory(root: Path, promises: Promises) -> None:
    """As a model is exported: nobody else knows of the directory until it stands."""
    make_directory(root / "run")
    write_directory_atomically(root / "run" / "model", fill)
    promises["stands"] = True


def check_directory(root: Path, promises: Promises) -> None:
    target = root / "run" / "model"
    assert target.is_dir() or not promises
    if target.is_dir():
        assert {path.name: path.read_bytes() for path in target.iterdir()} == CONTENT


def test_a_directory_stands_whole_or_not_at_all() -> None:
    """Its files, their names and its own, once it was said to stand."""
    assert cut_everywhere(put_directory, check_directory, throws=8) > 8


def put_files(root: Path, promises: Promises) -> None:
    """By a function that writes in pieces, and over an older one."""
    for number in range(3):
        pieces = [bytes([number]) * 50] * 4
        write_atomically(root / "file", lambda file, p=pieces: [file.write(one) for one in p])
        promises["last"] = number


def check_files(root: Path, promises: Promises) -> None:
    path = root / "file"
    data = path.read_bytes() if path.exists() else b""
    assert data in {b"", *(bytes([number]) * 200 for number in range(3))}
    assert (data[0] if data else -1) >= promises.get("last", -1)


def test_a_file_is_the_old_or_the_new_one() -> None:
    """Written in pieces, which its buffer holds until they are flushed."""
    assert cut_everywhere(put_files, check_files, throws=8) > 15
