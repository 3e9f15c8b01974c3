"""Packing: what a producer handed over, checked and turned into bytes.

In: an event with the values that a training script put into it.
Out: its envelope, packed with msgpack as any client in any language could.
Never: runs on the training thread, or reads a value that lives on a device.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Final

import msgpack
import msgspec

from shared.events import (
    CONFIG_MAX_BYTES,
    CUSTOM,
    EVENT_MAX_BYTES,
    HISTOGRAM_MAX_BINS,
    KINDS,
    NAME_MAX_BYTES,
    VALUES_MAX,
    ConfigUpdated,
    DecodeError,
    Event,
    HistogramLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
    decode_envelope,
)
from shared.redact import redacted

CONFIG_MAX_DEPTH: Final = 16
_TEXT_MAX: Final = 1000
_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**63 - 1
_SCALARS: Final = frozenset((float, bool, str))


class Refused(Exception):
    """An event that breaks the bounds. reason is short and stable, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def kind_of(event: Event) -> str:
    """What an event is counted as: the kind of its metrics, or else its tag.

    One of a fixed few, whatever a script calls its kind: counts stay bounded.
    """
    if not isinstance(event, MetricsLogged | HistogramLogged):
        return event.TAG
    # The type first: comparing a tensor would read it.
    return event.kind if type(event.kind) is str and event.kind in KINDS else CUSTOM


def pack_event(event: Event, wall_ns: int, mono_ns: int) -> bytes:
    """The envelope of an event, checked against every bound the sidecar enforces:
    what this returns decodes there to the same values.

    Raises:
        Refused: not a scalar, a name too long, too many values, an int beyond
            int64, a field of the wrong type, or too large altogether.
    """
    try:
        packed: bytes = msgpack.packb((event.TAG, wall_ns, mono_ns, _body(event)))
    except Refused:
        raise
    except Exception as exc:
        # A value's own methods may raise anything at all.
        raise Refused("not serializable", f"{event.TAG}: {exc}") from exc
    if len(packed) > EVENT_MAX_BYTES:
        raise Refused(
            "event too large", f"{event.TAG} of {len(packed)} bytes, at most {EVENT_MAX_BYTES}"
        )
    if not isinstance(event, MetricsLogged | HistogramLogged):
        _check_fields(packed)
    return packed


def _check_fields(packed: bytes) -> None:
    """Decode as the sidecar will: these events are rare, and structs check no types."""
    try:
        decode_envelope(packed).event()
    except DecodeError as exc:
        raise Refused("bad field", str(exc)) from exc


def _body(event: Event) -> dict[str, Any]:
    if isinstance(event, MetricsLogged):
        return {
            "kind": _name(event.kind),
            "step": _step(event.step),
            "values": _values(event.values),
        }
    if isinstance(event, HistogramLogged):
        return _histogram(event)
    body = {field: _plain(getattr(event, field)) for field in event.__struct_fields__}
    if isinstance(event, RunStarted | ConfigUpdated):
        body["config"] = _config(redacted(body["config"]))
    elif isinstance(event, RunFinished):
        body["summary"] = _config(redacted(body["summary"]))
    return body


def _values(values: dict[str, Any]) -> dict[str, Any]:
    if len(values) > VALUES_MAX:
        raise Refused("too many values", f"{len(values)} values in one event, at most {VALUES_MAX}")
    return {
        _name(name): value if type(value) in _SCALARS else _number(name, value)
        for name, value in values.items()
    }


def _number(name: str, value: Any) -> int | float | bool | str:
    """A Python scalar for an int, a NumPy scalar or a subclass of one.

    Tensors are refused, even those of one element: reading one waits for the
    device, and by now it may hold another step's value.
    """
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise Refused("int beyond 64 bits", f"{name!r} is an int beyond 64 bits")
        return int(value)
    raise Refused(
        "not a scalar",
        f"{name!r} is a {_type_name(value)}, not a Python or NumPy scalar; copy tensors to the "
        "host first, all of an interval in one asynchronous copy, and emit the numbers when it "
        "has arrived",
    )


def _step(step: Any) -> int | None:
    if step is None:
        return None
    number = _number("step", step)
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    raise Refused("bad step", f"step is a {_type_name(step)}, not an int")


def _name(name: Any) -> str:
    if type(name) is not str:
        raise Refused("bad name", f"a name is a {_type_name(name)}, not a str")
    # Characters first: they are counted without a copy.
    if len(name) > NAME_MAX_BYTES or len(name.encode()) > NAME_MAX_BYTES:
        raise Refused("bad name", f"{name[:40]!r}... is longer than {NAME_MAX_BYTES} bytes")
    return name


def _histogram(event: HistogramLogged) -> dict[str, Any]:
    if len(event.counts) > HISTOGRAM_MAX_BINS:
        raise Refused(
            "too many values",
            f"{len(event.counts)} bins in one histogram, at most {HISTOGRAM_MAX_BINS}",
        )
    return {
        "kind": _name(event.kind),
        "step": _step(event.step),
        "name": _name(event.name),
        "edges": [_real("edge", edge) for edge in event.edges],
        "counts": [_real("count", count) for count in event.counts],
    }


def _real(name: str, value: Any) -> float:
    number = value if type(value) is float else _number(name, value)
    if isinstance(number, str):
        raise Refused("not a scalar", f"a histogram's {name} is a str, not a number")
    return float(number)


def _config(config: Any) -> Any:
    """config, or a word in its place where it is too large: a run without its
    RunStarted would not be shown at all."""
    size = len(msgpack.packb(config))
    if size <= CONFIG_MAX_BYTES:
        return config
    return {"telemetry_refused": f"{size} bytes, at most {CONFIG_MAX_BYTES}"}


def _plain(value: Any, depth: int = 0) -> Any:
    """value in terms of MessagePack; what has none there becomes its own text.

    A run is worth showing with any config, so nothing in here is refused.
    """
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, str):
        return _utf8(value)
    if isinstance(value, int):
        return int(value) if _INT_MIN <= value <= _INT_MAX else _described(value)
    if depth >= CONFIG_MAX_DEPTH:
        return _described(value) if not isinstance(value, Mapping | list | tuple) else "..."
    return _plain_container(value, depth + 1)


def _plain_container(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return {
            key if type(key) is str and key.isascii() else _utf8(_described(key)): _plain(v, depth)
            for key, v in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth) for item in value]
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value), depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return _plain({field.name: getattr(value, field.name) for field in fields}, depth)
    return _described(value)


def _described(value: Any) -> str:
    """value as text; of an array or a tensor only its type, for its text would read it."""
    if hasattr(type(value), "__array__"):
        return _type_name(value)
    try:
        return _utf8(str(value)[:_TEXT_MAX])
    except Exception:
        return _type_name(value)


def _utf8(text: str) -> str:
    """text without the lone surrogates that Python's file names may hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
