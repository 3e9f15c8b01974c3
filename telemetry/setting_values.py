"""Setting values: turns what a flag, a variable or a file says into the value of a setting.

In: a field of ServeConfig, and text, or a value of TOML.
Out: a value of the field's type, within its bounds.
Raises: CommandError, with the name of the setting, its value, and what it may be.
"""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from shared.redact import SECRET
from shared.wandb_variables import MODES
from telemetry.errors import CommandError
from telemetry.sinks.registry import SINKS

HZ_MIN: Final = 0.05
"""Lowest sampling rate other than 0."""


def parsed_setting(field: dataclasses.Field[Any], value: Any, name: str) -> Any:
    """Return the value of a setting.

    name: the flag, variable or field of a file that said it, for an error.

    Raises:
        CommandError: it is of a wrong type, out of bounds, or none of the choices.
    """
    kind = type(field.default)
    low, high = field.metadata["low"], field.metadata["high"]
    try:
        parsed = _TYPES[kind](value)
        if low is not None and not low <= parsed <= high:
            raise ValueError(value)
    except (ValueError, TypeError, OverflowError, RuntimeError) as exc:
        what = _WORDS.get(kind, "text")
        bounds = "" if low is None else f" from {low} to {high}"
        shown = SECRET if field.metadata.get("is_secret") else repr(value)
        raise CommandError(f"{name}={shown} must be {what}{bounds}") from exc
    if field.name == "alert_webhook" and parsed and not _is_url(parsed):
        # Its value is a secret: not even a wrong one is shown.
        raise CommandError(f"{name} must be an address that begins with https:// or http://")
    _check_choice(field.name, name, parsed)
    return parsed


def _check_choice(field_name: str, name: str, value: Any) -> None:
    if field_name == "sinks":
        check_sinks(value, name)
    elif field_name == "command_form" and value and "{program}" not in value:
        raise CommandError(f"{name}={value!r} must have {{program}} and {{arguments}} in it")
    elif field_name == "wandb_mode" and value not in MODES:
        raise CommandError(f"{name}={value!r} must be online, offline or disabled")
    elif field_name in ("http", "page") and value != "off":
        check_address(name, value)
    elif field_name == "sample_hz" and 0 < value < HZ_MIN:
        raise CommandError(f"{name}={value!r} must be 0, or a number from {HZ_MIN} to 20")


def check_address(name: str, value: str) -> None:
    """Check an address to serve at.

    Raises:
        CommandError: it is not HOST:PORT.
    """
    if not _is_address(value):
        raise CommandError(f"{name}={value!r} must be HOST:PORT, with a port to 65535, or 'off'")


def check_sinks(names: tuple[str, ...], flag: str) -> None:
    """Check names of sinks.

    Raises:
        CommandError: one is unknown; the message names those that exist.
    """
    for sink in names:
        if sink not in SINKS:
            raise CommandError(f"{flag}: unknown sink {sink!r}; known: {', '.join(SINKS)}")


def _is_url(value: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and value.isprintable()
    except ValueError:
        return False


def _is_address(value: str) -> bool:
    port = value.rpartition(":")[2]
    return port.isascii() and port.isdigit() and int(port) < 65536


def _as_number(kind: type) -> Callable[[Any], Any]:
    """Return a converter to int or float that refuses a bool, and a float for an int."""

    def convert(value: Any) -> Any:
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError(value)
        return kind(value)

    return convert


def _as_text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(value)
    return value


def _as_path(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    if not _as_text(value):
        raise ValueError(value)
    return Path(value).expanduser()


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    return words[str(value).lower()] if str(value).lower() in words else _raise(value)


def _raise(value: Any) -> bool:
    raise ValueError(value)


def _as_names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else [_as_text(part) for part in value]
    return tuple(part.strip() for part in parts if part.strip())


_WORDS: Final = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(Path()): "the path of a directory, as text",
}
_TYPES: Final[dict[type, Any]] = {
    bool: _as_bool,
    int: _as_number(int),
    float: _as_number(float),
    str: _as_text,
    tuple: _as_names,
    type(Path()): _as_path,
}
