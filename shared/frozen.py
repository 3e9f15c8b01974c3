"""Frozen values: what a script handed over, copied so that it can't change any more.

In: any object, with containers inside it.
Out: scalars, lists and dicts of our own, and an Odd where something can't be recorded.
Never: follows a container into itself, or goes on for longer than its budget: this runs
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
from shared.scalars import Odd, scalar_of, type_name, utf8

Frozen = Any
"""Scalars, None, Odd, and lists and dicts of these."""

DEPTH_MAX: Final = 16
ARRAY_MAX_BYTES: Final = 4096
ROW_BUDGET: Final = 512
"""Elements of one value of a row: 4 KiB of numbers."""
CONFIG_BUDGET: Final = 100_000
TEXT_HELD_MAX: Final = 128 * 1024
"""Characters of a text: more than any field may have, so that what is cut is still told."""

TOO_LARGE: Final = "too large"
_COPY_TRIES: Final = 5
_SEQUENCES: Final = (list, tuple, set, frozenset, deque)
_VIEWS: Final[tuple[type, ...]] = (type({}.keys()), type({}.values()), range)


class Freezer:
    """One walk through a value, of at most budget elements."""

    def __init__(self, budget: int) -> None:
        self.left = budget
        self._inside: set[int] = set()

    def freeze(self, value: Any, depth: int = 0) -> Frozen:
        """Return value in scalars, lists and dicts that nobody else holds."""
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
        # A container of a stranger's making may raise anything.
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
            # A set has no order that would be the same the next time.
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
        """The items as far as the budget goes, and one more that says so."""
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
            # attrs and pydantic: what an instance holds, under the names that its class declares.
            return _copied(lambda: dict(object.__getattribute__(value, "__dict__")))
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        items = value.tolist()
        return items if type(items) is list else [items]
    if issubclass(kind, Mapping):
        return _copied(lambda: dict(value.items()))
    return None


def _copied(copy: Any) -> Any:
    """Copy a container that another thread may be changing: once it stands still."""
    for _ in range(_COPY_TRIES - 1):
        try:
            return copy()
        except RuntimeError:
            continue
    return copy()


def freeze(value: Any, budget: int) -> Frozen:
    """Return value in scalars, lists and dicts that nobody else holds; an Odd where it is none."""
    return Freezer(budget).freeze(value)


def large_array(value: Any) -> Odd:
    """Say that an array is too large to be copied while training waits."""
    text = f"{type_name(value)} {tuple(value.shape)} {value.dtype}"
    advice = f"it has {value.nbytes} bytes, at most {ARRAY_MAX_BYTES}; record a summary of it"
    return Odd(TOO_LARGE, advice, text)


def name_of(key: Any) -> str:
    """Return the text that a key stands for, at most NAME_MAX_BYTES of it.

    A name that has to be changed carries a hash of what it was, so that two never meet.
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
