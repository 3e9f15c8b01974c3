"""Scalars: one value of a training script, recorded as a number or a text by its type.

In: any object.
Out: a float, int, bool, str or None that stands for it, or an Odd that says why there is none.
Never: calls a method (`__str__`, `__float__`, `__eq__`, `__array__`) of a type that is
not in the list, or reads a tensor: that would wait for its device.

| type | is recorded as |
| --- | --- |
| float, int, bool, str, their subclasses, NumPy scalars and arrays of one element | their value |
| Decimal, Fraction, np.longdouble | the nearest float |
| an int beyond int64 | a float where that is exactly the number |
| Enum | its value if that is a text or the member is a number, else its name |
| Path, UUID, date, time | their text; timedelta its seconds |
"""

from __future__ import annotations

import datetime
import enum
import math
import pathlib
import sys
import types
import uuid
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple

Recorded = float | int | bool | str | None

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
_TEXT_MAX: Final = 1000
_DEVICE_LIBRARIES: Final = frozenset(
    {"torch", "jax", "jaxlib", "tensorflow", "cupy", "mlx", "paddle"}
)
_DATES: Final = (datetime.date, datetime.time)
_NAMED: Final = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
)
_TORCH_TEXTS: Final = ("dtype", "device", "layout", "memory_format", "Size")


class Odd(NamedTuple):
    """A value that is no scalar. reason is short and stable, for counting and for display."""

    reason: str
    advice: str
    text: str = ""
    """Text that a configuration shows in its place."""
    is_whole: bool = False
    """True if the text holds the whole value: a configuration then leaves nothing out."""


NONE: Final = Odd("None", "leave a value out as long as there is none")
TENSOR_ADVICE: Final = (
    "copy tensors to the host first, all of an interval in one asynchronous copy, and emit "
    "the numbers when it has arrived"
)


def scalar_of(value: Any) -> Recorded | Odd:
    """Return the scalar recorded for value; an Odd for a container or an unlisted type."""
    kind = type(value)
    if value is None or kind is float or kind is bool:
        return value  # type: ignore[no-any-return]
    if kind is int:
        return _int(value)
    if kind is str:
        return utf8(value)
    try:
        return _listed(value, kind)
    # A value of a known type may still be out of range, or broken in its own way.
    except Exception as exc:
        return Odd("not readable", f"reading it raised {type(exc).__name__}", type_name(value))


def _listed(value: Any, kind: type) -> Recorded | Odd:
    if issubclass(kind, enum.Enum):
        return _enum(value, kind)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, int):
        return _int(int.__int__(value))
    if issubclass(kind, str):
        return utf8(str.__str__(value))
    if issubclass(kind, Decimal):
        return _finite(Decimal.__float__(value), Decimal.is_finite(value), value)
    if issubclass(kind, Fraction):
        return _finite(value._numerator / value._denominator, True, value)
    if issubclass(kind, pathlib.PurePath):
        return utf8(pathlib.PurePath.__str__(value))
    if issubclass(kind, uuid.UUID):
        return uuid.UUID.__str__(value)
    if issubclass(kind, _DATES):
        return str(value.isoformat())
    if issubclass(kind, datetime.timedelta):
        return datetime.timedelta.total_seconds(value)
    return _of_library(value, kind)


def _of_library(value: Any, kind: type) -> Recorded | Odd:
    """Return the scalar of a NumPy value, or of a device library's value that needs no reading."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, numpy.generic | numpy.ndarray):
        return _numpy(value, kind, numpy)
    torch = sys.modules.get("torch")
    if torch is not None and kind in {getattr(torch, name, None) for name in _TORCH_TEXTS}:
        return str(value)
    return odd(value, kind)


def _numpy(value: Any, kind: type, numpy: Any) -> Recorded | Odd:
    if issubclass(kind, numpy.ndarray):
        is_scalar = kind is numpy.ndarray and value.size == 1 and value.dtype.kind in "biufU"
        return scalar_of(value.reshape(())[()]) if is_scalar else odd(value, kind)
    if issubclass(kind, numpy.bool_):
        return bool(value)
    if issubclass(kind, numpy.integer) and not issubclass(kind, numpy.timedelta64):
        return _int(int(value))
    if issubclass(kind, numpy.floating):
        return _finite(float(value), bool(numpy.isfinite(value)), value)
    if kind.__module__ == "ml_dtypes":
        return float(value)
    if issubclass(kind, numpy.datetime64 | numpy.timedelta64 | numpy.complexfloating):
        return odd(value, kind)._replace(text=str(value), is_whole=True)
    return odd(value, kind)


def odd(value: Any, kind: type) -> Odd:
    """Return the Odd that says why value is no scalar, and what to do about it."""
    name = type_name(value)
    if is_of_device(kind):
        return Odd("tensor", f"it is a {name}; {TENSOR_ADVICE}", name)
    if kind is complex:
        advice = "record its real and imaginary part as two values"
        return Odd("not a scalar", f"it is complex; {advice}", complex.__repr__(value), True)
    if kind is bytes:
        text = utf8(value[:_TEXT_MAX].decode("utf-8", "backslashreplace"))
        return Odd("not a scalar", "it is bytes; decode it to a text", text, True)
    if issubclass(kind, BaseException):
        text = error_text(value)
        return Odd("not a scalar", "it is an exception; record it as a message", text, True)
    if issubclass(kind, type) or kind in _NAMED:
        return Odd("not a scalar", f"it is a {name}; record a name of it", named(value), True)
    advice = "give a number, a bool, a text, or a small list, array or dict of them"
    return Odd("not a scalar", f"it is a {name}; {advice}", name)


def is_of_device(kind: type) -> bool:
    """True for types of tensors and arrays whose numbers may live on a device."""
    return any(
        str(base.__module__).partition(".")[0] in _DEVICE_LIBRARIES
        and any(word in base.__name__ for word in ("Tensor", "Array", "array"))
        for base in kind.__mro__
    )


def error_text(error: BaseException) -> str:
    """Return an exception's type and arguments as text, without calling its own __str__."""
    args = [scalar_of(arg) for arg in BaseException.__getattribute__(error, "args")]
    said = ", ".join(str(arg) for arg in args if not isinstance(arg, Odd))
    return f"{type_name(error).removeprefix('builtins.')}: {said}"[:_TEXT_MAX]


def named(value: Any) -> str:
    """Return the full name of a class, a function or a module."""
    if type(value) is types.ModuleType:
        return str(value.__name__)
    return utf8(f"{value.__module__}.{value.__qualname__}")[:_TEXT_MAX]


def type_name(value: Any) -> str:
    """Return the full name of a value's type."""
    kind = type(value)
    return utf8(f"{kind.__module__}.{kind.__qualname__}")[:200]


def utf8(text: str) -> str:
    """Return text with lone surrogates (file names may hold some) as visible escapes."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def _int(value: int) -> int | float | Odd:
    if INT_MIN <= value <= INT_MAX:
        return value
    size = f"an int of {value.bit_length()} bits"
    text = str(value) if value.bit_length() < 3000 else size
    try:
        nearest = float(value)
    except OverflowError:
        nearest = math.inf
    if nearest == value:
        return nearest
    advice = f"it is {size}, and 64 is the most; give a float, or a text"
    return Odd("int beyond 64 bits", advice, text, len(text) > len(size))


def _finite(number: float, should_be: bool, value: Any) -> float | Odd:
    """Return number; an Odd if only the conversion to float made it infinite."""
    if should_be and math.isinf(number):
        advice = "it is beyond a float; give its logarithm"
        return Odd("beyond a float", advice, type_name(value))
    return number


def _enum(value: Any, kind: type) -> Recorded | Odd:
    plain = object.__getattribute__(value, "_value_")
    if issubclass(kind, int | float) or type(plain) is str:
        return scalar_of(plain)
    return utf8(str(object.__getattribute__(value, "_name_")))
