"""Configurations: the values that a run was started with, cut to what can be recorded.

In: a frozen value (`shared.values.frozen`).
Out: nested dicts and lists of scalars, of at most CONFIG_MAX_BYTES, and the parts left out.
Never: drops the whole configuration because of one part. If it is too large, its largest
parts are cut, so that a learning rate is kept and a table of ten thousand labels is not.
"""

from __future__ import annotations

from typing import Any

import msgpack

from shared.events import CONFIG_MAX_BYTES
from shared.redact import redacted
from shared.values.frozen import Frozen
from shared.values.left_out import LeftOuts
from shared.values.scalars import Odd

UNNAMED = "value"
"""Name for a configuration that is not made of names and values, such as a list."""

_CUT = Odd("configuration too large", f"a configuration has at most {CONFIG_MAX_BYTES} bytes")
_GONE = object()


def configuration_of(frozen: Frozen, left_out: LeftOuts) -> dict[str, Any]:
    """Return the part of a configuration that is recorded, with its secrets hidden."""
    plain = _plain(frozen, "", left_out)
    if plain is None or plain is _GONE:
        return {}
    config = plain if isinstance(plain, dict) else {UNNAMED: plain}
    shown: dict[str, Any] = redacted(config)
    # One cut is usually enough; the packed length prefixes may still differ by a byte.
    while (excess := _size(shown) - CONFIG_MAX_BYTES) > 0:
        shown = _cut(shown, excess, "", left_out)
    return shown


def _plain(value: Frozen, path: str, left_out: LeftOuts) -> Any:
    """Replace each Odd in value by its text; add it to left_out if the text is not all of it."""
    if isinstance(value, dict):
        return {name: _plain(item, _join(path, name), left_out) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, _join(path, str(at)), left_out) for at, item in enumerate(value)]
    if type(value) is not Odd:
        return value
    if not value.is_whole:
        left_out.add(path or "config", value)
    return value.text


def _cut(node: Any, excess: int, path: str, left_out: LeftOuts) -> Any:
    """Return node made smaller by at least excess bytes; the largest parts are cut first."""
    if isinstance(node, str):
        kept = node.encode()[: max(0, len(node.encode()) - excess - 8)].decode(errors="ignore")
        left_out.add(path, _CUT)
        return kept + "..." if len(kept) > 100 else _GONE
    is_dict = isinstance(node, dict)
    entries = dict(node.items() if is_dict else enumerate(node))
    sizes = {key: _size(item) + (_size(key) if is_dict else 0) for key, item in entries.items()}
    for key in _largest_first(sizes, is_list=not is_dict):
        if excess <= 0:
            break
        item, inner = entries[key], _join(path, str(key))
        if sizes[key] > excess and isinstance(item, dict | list | str):
            entries[key] = _cut(item, excess, inner, left_out)
        else:
            entries[key] = _GONE
            left_out.add(inner, _CUT)
        if entries[key] is _GONE:
            del entries[key]
            excess -= sizes[key]
        else:
            excess -= _size(item) - _size(entries[key])
    return entries if is_dict else list(entries.values())


def _largest_first(sizes: dict[Any, int], *, is_list: bool) -> list[Any]:
    """Return the keys in the order in which they are cut; a list is cut from its end."""
    if is_list:
        return list(reversed(sizes))
    return sorted(sizes, key=lambda key: sizes[key], reverse=True)


def _size(value: Any) -> int:
    return len(msgpack.packb(value))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
