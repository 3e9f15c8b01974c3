"""Packing: what a producer handed over, checked and turned into bytes.

In: an event with the values that a training script put into it.
Out: its envelope, packed with msgpack as any client in any language could.
Never: runs on the training thread, or reads a value that lives on a device.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack
import msgspec

from shared.events import (
    CONFIG_MAX_BYTES,
    EVENT_MAX_BYTES,
    HISTOGRAM_MAX_BINS,
    NAME_MAX_BYTES,
    VALUES_MAX,
    ConfigUpdated,
    Event,
    HistogramLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
)

_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**63 - 1
_SCALARS: Final = frozenset((float, bool, str))


class Refused(Exception):
    """An event that breaks the bounds. reason is short and stable, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def kind_of(event: Event) -> str:
    """What an event is counted as: the kind of its metrics, or else its tag."""
    return str(event.kind) if isinstance(event, MetricsLogged | HistogramLogged) else event.TAG


def pack_event(event: Event, wall_ns: int, mono_ns: int) -> bytes:
    """The envelope of an event, checked against every bound the sidecar enforces.

    Raises:
        Refused: not a scalar, a name too long, too many values, an int beyond
            int64, or too large altogether.
    """
    try:
        packed: bytes = msgpack.packb((event.TAG, wall_ns, mono_ns, _body(event)))
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise Refused("not serializable", f"{event.TAG}: {exc}") from exc
    if len(packed) > EVENT_MAX_BYTES:
        raise Refused(
            "event too large", f"{event.TAG} of {len(packed)} bytes, at most {EVENT_MAX_BYTES}"
        )
    return packed


def _body(event: Event) -> dict[str, Any]:
    if isinstance(event, MetricsLogged):
        return {
            "kind": _text(event.kind),
            "step": _step(event.step),
            "values": _values(event.values),
        }
    if isinstance(event, HistogramLogged):
        return _histogram(event)
    body: dict[str, Any] = msgspec.to_builtins(event, enc_hook=str)
    if isinstance(event, RunStarted | ConfigUpdated):
        body["config"] = _config(body["config"])
    elif isinstance(event, RunFinished):
        body["summary"] = _config(body["summary"])
    return body


def _values(values: dict[str, Any]) -> dict[str, Any]:
    if len(values) > VALUES_MAX:
        raise Refused("too many values", f"{len(values)} values in one event, at most {VALUES_MAX}")
    checked = {}
    for name, value in values.items():
        if type(name) is not str or len(name.encode()) > NAME_MAX_BYTES:
            shown = str(name)[:40]
            raise Refused("bad name", f"metric name {shown!r}... is not a short string")
        checked[name] = value if type(value) in _SCALARS else _number(name, value)
    return checked


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
    kind = f"{type(value).__module__}.{type(value).__name__}"
    raise Refused(
        "not a scalar",
        f"{name!r} is a {kind}, not a Python or NumPy scalar; copy tensors to the host first, "
        "all of an interval in one asynchronous copy, and emit the numbers when it has arrived",
    )


def _step(step: Any) -> int | None:
    if step is None or (type(step) is int and _INT_MIN <= step <= _INT_MAX):
        return step
    number = _number("step", step)
    if isinstance(number, int):
        return number
    raise Refused("bad step", f"step {step!r} is not an int")


def _text(text: Any) -> str:
    if type(text) is not str or len(text) > NAME_MAX_BYTES:
        raise Refused("bad name", f"{str(text)[:40]!r} is not a short string")
    return text


def _histogram(event: HistogramLogged) -> dict[str, Any]:
    if len(event.counts) > HISTOGRAM_MAX_BINS:
        raise Refused("too many values", f"{len(event.counts)} bins in {event.name!r}, at most 512")
    return {
        "kind": _text(event.kind),
        "step": _step(event.step),
        "name": _text(event.name),
        "edges": [float(_number("edge", edge)) for edge in event.edges],
        "counts": [float(_number("count", count)) for count in event.counts],
    }


def _config(config: dict[str, Any]) -> dict[str, Any]:
    """config, or a word in its place where it is too large: a run without its
    RunStarted would not be shown at all."""
    size = len(msgpack.packb(config))
    if size <= CONFIG_MAX_BYTES:
        return config
    return {"telemetry_refused": f"{size} bytes, at most {CONFIG_MAX_BYTES}"}
