"""Fields: texts and numbers of rare events, converted from any value of a script.

In: a field's value, of any type.
Out: a value of the field's type.
Never: refuses an event for one field. A value that can't be converted is left out by name.
"""

from __future__ import annotations

from typing import Any, TypeVar

from shared.values.frozen import ROW_BUDGET, freeze
from shared.values.left_out import LeftOuts
from shared.values.rows import cut_text
from shared.values.scalars import INT_MAX, INT_MIN, Odd, scalar_of

Default = TypeVar("Default", int, None)


def text_of(name: str, value: Any, left_out: LeftOuts, default: str, max_bytes: int = 1024) -> str:
    """Return a field as a text; None gives the default, a number its digits."""
    found = scalar_of(value) if type(value) is not Odd else value
    if found is None:
        return default
    if isinstance(found, Odd):
        if not found.is_whole:
            left_out.add(name, found)
            return default
        found = found.text
    return cut_text(name, found if isinstance(found, str) else repr(found), max_bytes, left_out)


def texts_of(name: str, value: Any, left_out: LeftOuts, most: int, max_bytes: int) -> list[str]:
    """Return a field as a list of texts; a single text gives a list of one."""
    found = freeze(value, ROW_BUDGET)
    if found is None:
        return []
    if not isinstance(found, list | dict):
        found = [found]
    if len(found) > most:
        left_out.add(name, Odd("too many", f"{len(found)} of them, at most {most}"))
    items = list(found)[:most]
    texts = [
        text_of(f"{name}/{at}", item, left_out, "", max_bytes) for at, item in enumerate(items)
    ]
    return [text for text, item in zip(texts, items, strict=True) if text or item == ""]


def number_of(name: str, value: Any, left_out: LeftOuts, default: Default) -> int | Default:
    """Return a field as an int; None gives the default."""
    found = scalar_of(value)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if found is None:
        return default
    if isinstance(found, int) and INT_MIN <= found <= INT_MAX:
        return int(found)
    why = found if isinstance(found, Odd) else Odd("not an int", "give a whole number")
    left_out.add(name, why)
    return default
