"""Text for people: names and messages from outside, made safe to print.

In: any text, as a user, a peer or a file gave it.
Out: one line of the same text, which can neither control a terminal nor forge a log line.
Never: drops characters silently: unprintable ones are escaped, a cut is marked by `...`.
"""

from __future__ import annotations

import unicodedata
from typing import Final

TEXT_MAX_CHARS: Final = 1000
CUT_MARK: Final = "..."

_ESCAPED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories that act instead of being shown: controls, bidi and other format
characters, lone surrogates, separators of lines and paragraphs."""
_JOINERS: Final = "\u200c\u200d"
"""Format characters without which some scripts and emoji can't be written."""


def clean(text: str, max_chars: int = TEXT_MAX_CHARS) -> str:
    r"""Escape unprintable characters (ESC as `\x1b`, U+202E as `\u202e`), and bound the length.

    The result has no line break, encodes as UTF-8, and cleaned again stays as it is.
    """
    # Cut first, so that a text of a gigabyte is not scanned.
    shown = text[: max_chars + 1]
    if not shown.isprintable():
        shown = "".join(map(_escaped, shown))
    if len(shown) <= max_chars:
        return shown
    return shown[: max(0, max_chars - len(CUT_MARK))] + CUT_MARK[:max_chars]


def _escaped(character: str) -> str:
    is_shown = character.isprintable() or character in _JOINERS
    if is_shown or unicodedata.category(character) not in _ESCAPED:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
