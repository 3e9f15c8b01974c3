"""JSON files: written whole, and read for what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.files import write_atomically


def write_json(path: Path, value: Any) -> None:
    """Write value as JSON: a crash leaves the old file or the new one."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file, or None where there is no file, or none that is one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
