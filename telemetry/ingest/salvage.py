"""Salvage: keeps the valid parts of an event that does not fit its type.

In: an envelope of a client that checks nothing.
Out: a typed event with the rest left out by name, or nothing.
Never: invents a value, or calls anything by another name.

Emitters of this project leave out and split before they send; other clients may not. One
bad value costs that value, and only an event of which nothing is left is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import msgspec

from shared.events import (
    EVENT_MAX_BYTES,
    EVENT_TYPES,
    NAME_MAX_BYTES,
    VALUES_MAX,
    ConfigUpdated,
    DecodeError,
    Envelope,
    Event,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    PartialEvent,
    RunFinished,
    encode_event,
)
from shared.values.configuration import configuration_of
from shared.values.left_out import LeftOuts
from shared.values.scalars import Odd

_NOT_SCALAR: Final = Odd("not a scalar", "a value is a number, a bool or a text")
_INT_TOO_LARGE: Final = Odd("int beyond 64 bits", "an int has at most 64 bits")
_NAME_TOO_LONG: Final = Odd("name too long", f"a name has at most {NAME_MAX_BYTES} bytes")
_TOO_MANY: Final = Odd("too many values", f"an event has at most {VALUES_MAX} values")
_TOO_LARGE: Final = Odd("event too large", f"an event has at most {EVENT_MAX_BYTES} bytes")
_WRONG_TYPE: Final = Odd("wrong type", "the field has another type")

_TEXT_KEPT_BYTES: Final = 128 * 1024
_CUT: Final = " ... (cut)"


def salvaged(envelope: Envelope) -> Event | None:
    """Return the event with its valid parts, or None where nothing can be kept."""
    kind = EVENT_TYPES.get(envelope.tag)
    if kind is None or not issubclass(kind, PartialEvent | MessageLogged | RunFinished):
        return None
    try:
        body = msgspec.msgpack.decode(envelope.body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or kind is HistogramLogged:
        return None
    left_out = LeftOuts()
    try:
        kept = _kept_fields(kind, body, left_out)
        told = left_out.fields() if issubclass(kind, PartialEvent) else {}
        event = msgspec.convert({**kept, **told}, kind)
    # TypeError, OverflowError: raised while packing a configuration with foreign values.
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
        return None
    return event if _has_content(event) else None


def _kept_fields(kind: type[Event], body: dict[Any, Any], left_out: LeftOuts) -> dict[str, Any]:
    """Return the fields of a body that have the right type; note the others in left_out."""
    kept: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.name not in body or field.name in ("left_out", "left_out_count"):
            continue
        value = body[field.name]
        if kind is MetricsLogged and field.name == "values":
            value = _kept_values(value, left_out)
        elif field.name == "step":
            value = _step(value)
        elif field.name in ("config", "summary") and isinstance(value, dict):
            value = _config(value, left_out)
        elif isinstance(value, str) and field.name in ("text", "notes"):
            value = _cut(value)
        try:
            kept[field.name] = msgspec.convert(value, field.type)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            left_out.add(field.name, _WRONG_TYPE)
    return kept


def _kept_values(values: Any, left_out: LeftOuts) -> Any:
    """Return the values that can be kept, up to the bounds of an event."""
    if not isinstance(values, dict):
        return values
    kept: dict[str, Any] = {}
    size = 0
    for name, value in values.items():
        if not isinstance(name, str):
            left_out.add(str(type(name).__name__), _WRONG_TYPE)
            continue
        size_now = size + len(name.encode()) + (len(value.encode()) if type(value) is str else 9)
        odd = _odd_of(name, value)
        if odd is None and len(kept) >= VALUES_MAX:
            odd = _TOO_MANY
        if odd is None and size_now > EVENT_MAX_BYTES - 16 * 1024:
            odd = _TOO_LARGE
        if odd is not None:
            left_out.add(name, odd)
            continue
        kept[name] = value
        size = size_now + 6
    return kept


def _odd_of(name: str, value: Any) -> Odd | None:
    """Return the reason why a value can't be kept, or None if it can."""
    if len(name.encode()) > NAME_MAX_BYTES:
        return _NAME_TOO_LONG
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return _INT_TOO_LARGE
    return None if isinstance(value, float | int | str) else _NOT_SCALAR


def _cut(text: str) -> str:
    """Return a text cut to _TEXT_KEPT_BYTES, with a mark where it was longer."""
    data = text.encode()
    if len(data) <= _TEXT_KEPT_BYTES:
        return text
    return data[:_TEXT_KEPT_BYTES].decode(errors="ignore") + _CUT


def _step(value: Any) -> Any:
    """Return a whole float as an int (10.0 is step 10), anything else as it is."""
    is_whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    return int(value) if is_whole else value


def _config(config: dict[Any, Any], left_out: LeftOuts) -> dict[str, Any]:
    return configuration_of(_named(config), left_out)


def _named(value: Any) -> Any:
    """Return a value with all keys of its maps as texts."""
    if isinstance(value, dict):
        return {str(key)[:NAME_MAX_BYTES]: _named(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    return value if isinstance(value, float | int | str | None) else repr(value)[:100]


def _has_content(event: Event) -> bool:
    """Return True if any content is left of an event."""
    match event:
        case MetricsLogged(values=content) | ConfigUpdated(config=content):
            return bool(content)
        case _:
            return True


Check = Callable[[bytes], Event | None]


def repacked(envelope: Envelope, check: Check) -> tuple[bytes, Event]:
    """Return the salvaged event, packed and typed, to be journaled in place of the original.

    Raises:
        DecodeError: nothing of it can be kept.
    """
    event = salvaged(envelope)
    if event is None:
        raise DecodeError("nothing of it can be kept")
    packed = encode_event(event, envelope.wall_ns, envelope.mono_ns)
    check(packed)
    return packed, event
