"""Files: written so that a crash leaves the old content or the new one, never half of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its target, sync it, rename it over the target, sync the directory.

    Raises:
        OSError: the target is as it was before; what was written beside it is gone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _sync(path.parent)


def write_directory_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Fill a directory beside its target, sync all of it, rename it to the target.

    A directory cannot be renamed over one with files in it: an older one of this name is
    moved aside first, and is gone once the new one stands.

    Raises:
        OSError: the target is as it was before; what was written beside it is gone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        beside.mkdir()
        write(beside)
        for file in beside.iterdir():
            _sync(file)
        _sync(beside)
        if path.exists():
            path.rename(old)
        beside.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
