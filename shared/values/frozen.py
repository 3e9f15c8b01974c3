"""Frozen values: copies of a script's values that can't change any more.

In: any object, with containers inside it.
Out: scalars, new lists and dicts, and an Odd in the place of what can't be recorded.
Never: follows a container into itself, or copies more than its budget: this runs
on the training thread, for rare events and for values that are not plain numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
import types
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from shared.events import NAME_MAX_BYTES
from shared.values.scalars import Odd, scalar_of, type_name, utf8

Frozen = Any
"""Scalars, None, Odd, and lists and dicts of these."""

DEPTH_MAX: Final = 16
ARRAY_MAX_BYTES: Final = 4096
ROW_BUDGET: Final = 512
"""Elements at most in one value of a row: 4 KiB of numbers."""
CONFIG_BUDGET: Final = 100_000
TEXT_HELD_MAX: Final = 128 * 1024
"""Characters kept of a text. More than any field allows, so that a later cut is reported."""

TOO_LARGE: Final = "too large"
_COPY_TRIES: Final = 5
_SEQUENCES: Final = (list, tuple, set, frozenset, deque)
_VIEWS: Final[tuple[type, ...]] = (type({}.keys()), type({}.values()), range)


class Freezer:
    """One copy of a value, of at most budget elements. Not thread-safe."""

    def __init__(self, budget: int) -> None:
        self.left = budget
        self._inside: set[int] = set()

    def freeze(self, value: Any, depth: int = 0) -> Frozen:
        """Return a copy of value in scalars, lists and dicts that no other code refers to."""
        self.left -= 1
        if type(value) is Odd:
            return value
        if self.left < 0:
            return Odd(TOO_LARGE, "it has too many entries; record fewer", "...")
        found = scalar_of(value)
        if type(found) is str:
            return found[:TEXT_HELD_MAX]
        if type(found) is not Odd:
            return found
        if id(value) in self._inside:
            return Odd("contains itself", "leave out the entry that leads back", "(itself)")
        try:
            return self._container(value, found, depth)
        # A container of an unknown class may raise anything.
        except Exception as exc:
            return found._replace(advice=f"reading it raised {type(exc).__name__}")

    def _container(self, value: Any, found: Odd, depth: int) -> Frozen:
        kind = type(value)
        numpy = sys.modules.get("numpy")
        if numpy is not None and kind is numpy.ndarray and value.nbytes > ARRAY_MAX_BYTES:
            return large_array(value)
        parts = _parts(value, kind)
        if parts is None:
            return found
        if depth >= DEPTH_MAX:
            return Odd("nested too deep", f"at most {DEPTH_MAX} levels are recorded", "...")
        self._inside.add(id(value))
        try:
            if isinstance(parts, dict):
                return self._entries(parts, depth)
            items = [self.freeze(item, depth + 1) for item in self._within(parts)]
            # Sorted, because the order of a set differs from one process to the next.
            return sorted(items, key=repr) if issubclass(kind, set | frozenset) else items
        finally:
            self._inside.discard(id(value))

    def _entries(self, parts: dict[Any, Any], depth: int) -> dict[str, Frozen]:
        entries: dict[str, Frozen] = {}
        for key in self._within(list(parts)):
            name = name_of(key)
            if name in entries:
                name = marked(name, f"{type_name(key)} {name} {len(entries)}")
            entries[name] = self.freeze(parts[key], depth + 1)
        return entries

    def _within(self, items: list[Any]) -> Iterable[Any]:
        """Return the items within the budget, and one more, which becomes a "too large" Odd."""
        return items if len(items) <= self.left else items[: max(1, self.left + 1)]


def _parts(value: Any, kind: type) -> Any:
    """Return the entries or the items of a container, copied at once; None for no container."""
    if issubclass(kind, dict):
        return _copied(lambda: dict.copy(value))
    if issubclass(kind, _SEQUENCES + _VIEWS):
        base: Any = next(base for base in _SEQUENCES + _VIEWS if issubclass(kind, base))
        return _copied(lambda: list(base.__iter__(value)))
    if issubclass(kind, msgspec.Struct):
        return {name: getattr(value, name) for name in kind.__struct_fields__}
    if issubclass(kind, argparse.Namespace | types.SimpleNamespace):
        return _copied(lambda: dict(object.__getattribute__(value, "__dict__")))
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    for declared in ("__attrs_attrs__", "__pydantic_fields__"):
        if declared in vars(kind):
            # attrs and pydantic keep the fields of an instance in its __dict__.
            return _copied(lambda: dict(object.__getattribute__(value, "__dict__")))
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        items = value.tolist()
        return items if type(items) is list else [items]
    if issubclass(kind, Mapping):
        return _copied(lambda: dict(value.items()))
    return None


def _copied(copy: Any) -> Any:
    """Copy a container; try again if another thread changes it meanwhile."""
    for _ in range(_COPY_TRIES - 1):
        try:
            return copy()
        except RuntimeError:
            continue
    return copy()


def freeze(value: Any, budget: int) -> Frozen:
    """Return a copy of value in scalars, lists and dicts; an Odd if it can't be recorded."""
    return Freezer(budget).freeze(value)


def large_array(value: Any) -> Odd:
    """Return the Odd for an array that is too large to be copied on the training thread."""
    text = f"{type_name(value)} {tuple(value.shape)} {value.dtype}"
    advice = f"it has {value.nbytes} bytes, at most {ARRAY_MAX_BYTES}; record a summary of it"
    return Odd(TOO_LARGE, advice, text)


def name_of(key: Any) -> str:
    """Return a key as a name of at most NAME_MAX_BYTES.

    A name that has to be changed ends in a hash of the original, so that two different
    keys do not get the same name.
    """
    if type(key) is str:
        # Characters first: they are counted without a copy.
        if key.isascii() and len(key) <= NAME_MAX_BYTES:
            return key
        name = utf8(key)
        if name == key and len(name.encode()) <= NAME_MAX_BYTES:
            return name
        return marked(name, key)
    if type(key) is tuple:
        return name_of("/".join(name_of(part) for part in key[:DEPTH_MAX]))
    found = key if type(key) is Odd else scalar_of(key)
    if isinstance(found, Odd):
        return marked(found.text, f"{type_name(key)} {found.text}")
    if isinstance(found, str):
        return name_of(found)
    return repr(found)


def marked(name: str, original: str) -> str:
    """Return name, shortened where it must be, with a short hash of the original behind it."""
    data = original.encode("utf-8", "surrogatepass")
    mark = "~" + hashlib.blake2b(data, digest_size=4).hexdigest()
    kept = name.encode()[: NAME_MAX_BYTES - len(mark)].decode(errors="ignore")
    return kept + mark
