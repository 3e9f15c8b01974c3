"""Small files that must be either the old or the new, never something between."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from telemetry.journal.layout import sync_directory


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the target, sync, rename over it, and make the name durable.

    One process at a time writes a target. What a crash leaves beside it, the
    next write replaces.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file, or None where there is no such file or no object in it.

    Whatever lies there, a damaged file costs nobody more than what was in it.
    """
    try:
        # A pipe of that name would be waited for.
        value = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
