"""Rows: the named values of one moment, reduced to scalars that can be recorded.

In: a dict as a script gave it, or a copy of it that emit() made.
Out: dicts of at most VALUES_MAX scalars, and the names of the values left out.
Never: reads a value that lives on a device.

A list, tuple or array becomes one value for each element, `name/0`, `name/1`, ...; a
dict one for each entry, `name/key`; both at any depth, up to 4 KiB. None is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from shared.events import EVENT_MAX_BYTES, VALUES_MAX
from shared.redact import redacted
from shared.values.frozen import ROW_BUDGET, Freezer, freeze, marked, name_of
from shared.values.left_out import LeftOuts
from shared.values.scalars import INT_MAX, INT_MIN, NONE, Odd, scalar_of, utf8

TEXT_MAX_BYTES: Final = 8 * 1024
"""Bytes at most of a text among the values of a row."""
VALUE_COST_BYTES: Final = 60
"""Memory that one scalar with its name takes, about."""
PIECE_MAX_BYTES: Final = EVENT_MAX_BYTES * 3 // 4
"""Bytes of values at most in one event; a wider row becomes several of the same step."""

_SIMPLE: Final = frozenset({float, bool, int})
_KEPT: Final[set[type]] = {*_SIMPLE, type(None), Decimal, Fraction}
"""Types whose objects never change: emit() does not copy them. NumPy scalars are added."""
_KNOWN_NAMES: Final[set[str]] = set()
"""Names that were checked before and need no change: the fast path of simple_row."""
_KNOWN_NAMES_MAX: Final = 20_000

Row = dict[str, float | int | bool | str]


def held_row(values: Any) -> tuple[dict[Any, Any], int]:
    """Return a copy of values that the caller can't change, and its cost beside its scalars.

    Runs on the training thread.

    Raises:
        TypeError: values is not a mapping of names to values.
    """
    row = dict(values) if type(values) is dict else _named(values)
    # Most rows hold numbers only: one pass in C.
    if _KEPT.issuperset(map(type, row.values())):
        return row, 0
    cost = 0
    for name, value in row.items():
        kind = type(value)
        if kind is str:
            # The sender thread cuts the text and reports it; this bounds the memory until then.
            row[name] = value = value[: TEXT_MAX_BYTES + 1]
            cost += 4 * len(value)
        elif kind not in _KEPT:
            row[name], size = _held(value)
            cost += size
    return row, cost


def _named(values: Any) -> dict[Any, Any]:
    found = freeze(values, ROW_BUDGET * VALUES_MAX)
    if type(found) is not dict:
        raise TypeError("a row is names and values")
    return found


def _held(value: Any) -> tuple[Any, int]:
    """Return a copy of a value that the caller can't change, and its cost in bytes."""
    kind, numpy = type(value), sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, numpy.number | numpy.bool_):
        _KEPT.add(kind)
        return value, 0
    freezer = Freezer(ROW_BUDGET)
    found = freezer.freeze(value)
    return found, VALUE_COST_BYTES * (ROW_BUDGET - max(0, freezer.left))


def simple_row(values: dict[Any, Any]) -> Row | None:
    """Return values unchanged if they can be recorded as they are, as nearly all can; else None."""
    if len(values) > VALUES_MAX or not _KNOWN_NAMES.issuperset(values):
        return None
    kinds = set(map(type, values.values()))
    if not kinds <= _SIMPLE:
        return None
    if int in kinds and not all(INT_MIN <= v <= INT_MAX for v in values.values() if type(v) is int):
        return None
    return values


def rows_of(values: dict[Any, Any], left_out: LeftOuts) -> list[Row]:
    """Return the values that can be recorded, split into as many rows as they need."""
    pieces: list[Row] = []
    piece: Row = {}
    size = 0
    taken: set[str] = set()
    for name, value in _flat(values, left_out):
        if name in taken:
            name = marked(name, f"{name} {len(taken)}")
        taken.add(name)
        cost = len(name.encode()) + 12 + (4 * len(value) if isinstance(value, str) else 0)
        if piece and (len(piece) >= VALUES_MAX or size + cost > PIECE_MAX_BYTES):
            pieces.append(piece)
            piece, size = {}, 0
        piece[name] = value
        size += cost
    return [*pieces, piece] if piece else pieces


def _flat(values: dict[Any, Any], left_out: LeftOuts) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = name_of(key)
        if name is key and len(_KNOWN_NAMES) < _KNOWN_NAMES_MAX:
            _KNOWN_NAMES.add(name)
        found = scalar_of(value)
        yield from _leaves(
            name, freeze(value, ROW_BUDGET) if type(found) is Odd else found, left_out
        )


def _leaves(name: str, value: Any, left_out: LeftOuts) -> Iterator[tuple[str, Any]]:
    """Yield the scalars in a frozen value, each with its own name."""
    kind = type(value)
    if kind is list or kind is dict:
        items = enumerate(value) if kind is list else value.items()
        for key, item in items:
            yield from _leaves(name_of(f"{name}/{key}"), item, left_out)
    elif value is None:
        left_out.add(name, NONE)
    elif kind is Odd:
        left_out.add(name, value)
    elif kind is str:
        yield name, cut_text(name, redacted(value, name), TEXT_MAX_BYTES, left_out)
    else:
        yield name, value


def cut_text(name: str, text: str, max_bytes: int, left_out: LeftOuts) -> str:
    """Return text in at most max_bytes of UTF-8; a cut is reported in left_out."""
    if 4 * len(text) <= max_bytes:
        return text
    data = text[: max_bytes + 1].encode()
    if len(data) <= max_bytes and len(text) <= max_bytes:
        return text
    left_out.add(name, Odd("text cut", f"it is longer than {max_bytes} bytes and was cut"))
    return data[: max_bytes - 3].decode(errors="ignore") + "..."


def step_of(step: Any, left_out: LeftOuts) -> int | None:
    """Return a step as an int (10.0 gives 10); anything that is no step is left out."""
    found = scalar_of(step)
    if found is None or (type(found) is int and found is not True):
        return found
    if type(found) is float and found.is_integer() and INT_MIN <= found <= INT_MAX:
        return int(found)
    if isinstance(found, Odd):
        left_out.add("step", found)
    else:
        shown = utf8(repr(found))[:40]
        left_out.add("step", Odd("bad step", f"{shown} is no whole number of at most 64 bits"))
    return None
