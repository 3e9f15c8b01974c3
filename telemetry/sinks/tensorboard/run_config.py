"""Configuration of a run for display: flat names, values that any tab can show.

In: the nested configuration of an event.
Out: flat names and scalars, or a Markdown table of them.
Never: fails, whatever the configuration holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from shared.events import Scalar

HPARAM_MAX_CHARS: Final = 200
_IDENTITY_NAME: Final = re.compile(
    r"((^|[._-])(path|paths|dir|dirs|directory|file|filename|folder|root|hash|sha|sha1|sha256"
    r"|md5|digest|fingerprint|checksum|commit|revision|uuid|id|ids|url|uri|endpoint|address|host"
    r"|hostname|pid|argv|command)$)",
    re.IGNORECASE,
)
_IDENTITY_VALUE: Final = re.compile(
    r"(~|\.{1,2})?/.*|[A-Za-z]:\\.*|[A-Za-z][A-Za-z0-9+.-]*://.*|[^\s,]+/[^\s,]+/[^\s,]*"
    r"|(sha\d+:)?[0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    re.IGNORECASE | re.DOTALL,
)
_DEPTH_MAX: Final = 16
_TOO_DEEP: Final = "…"


def flat_config(config: Mapping[str, Any]) -> dict[str, Scalar]:
    """Flatten a configuration: nested names joined by dots, non-scalars as text."""
    return dict(_flat("", config, 0))


def hparams_of(flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Select what the HPARAMS tab compares: no ids, hashes or paths, which always differ."""
    return {name: value for name, value in flat.items() if not _is_identity(name, value)}


def table(values: Mapping[str, Any]) -> str:
    """Return a Markdown table of names and values."""
    lines = [f"| {_cell(name)} | {_cell(_shown(value, 0))} |" for name, value in values.items()]
    return "\n".join(["| name | value |", "| --- | --- |", *lines])


def _is_identity(name: str, value: Scalar) -> bool:
    """True if a value is an id, a hash, an address or a path, which differs in every run."""
    if _IDENTITY_NAME.search(name):
        return True
    if not isinstance(value, str):
        return False
    return len(value) > HPARAM_MAX_CHARS or _IDENTITY_VALUE.fullmatch(value) is not None


def _flat(prefix: str, value: Any, depth: int) -> Iterator[tuple[str, Scalar]]:
    if not isinstance(value, Mapping) or not value or depth == _DEPTH_MAX:
        if prefix:
            yield prefix, _scalar(value, depth)
        return
    for name, inner in value.items():
        yield from _flat(f"{prefix}.{name}" if prefix else str(name), inner, depth + 1)


def _scalar(value: Any, depth: int) -> Scalar:
    # NaN and infinity as text: neither JSON nor the HPARAMS tab has numbers for them.
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _shown(value, depth)


def _shown(value: Any, depth: int) -> str:
    if not isinstance(value, list | tuple | Mapping):
        return str(value)
    if depth >= _DEPTH_MAX:
        return _TOO_DEEP
    if isinstance(value, Mapping):
        inner = (f"{name}: {_shown(each, depth + 1)}" for name, each in value.items())
        return "{" + ", ".join(inner) + "}"
    return "[" + ", ".join(_shown(each, depth + 1) for each in value) + "]"


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
