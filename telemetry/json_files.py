"""JSON files: written atomically, and checked when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.files import write_atomically


class DamagedFile(ValueError):
    """A file that is there, and holds no JSON object; the message says why."""


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically and durably.

    Raises:
        OSError: it can't be written; a former file is unchanged.
    """
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def load_json(path: Path) -> dict[str, Any] | None:
    """Read the object in a file; None where there is no file.

    Raises:
        DamagedFile: it can't be read, or is no object.
    """
    try:
        # Opening a pipe of that name would wait for its writer.
        if path.exists() and not path.is_file():
            raise DamagedFile(f"{path.name} is not a file")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise DamagedFile(f"{path.name} can't be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:  # RecursionError: brackets in brackets
        raise DamagedFile(f"{path.name} is not JSON") from exc
    if not isinstance(value, dict):
        raise DamagedFile(f"{path.name} is not a JSON object")
    return value


def read_json(path: Path) -> dict[str, Any] | None:
    """Read the object in a file; None where there is no file, or it is damaged."""
    try:
        return load_json(path)
    except DamagedFile:
        return None
