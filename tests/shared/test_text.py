"""Text for people: nothing in it acts, and nothing of it is lost without a trace."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.text import CUT_MARK, clean

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=50)
"""Lone surrogates, controls and unassigned characters among it."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("train/loss", "train/loss"),
        ("Größe µ 損失 🙂", "Größe µ 損失 🙂"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("bell\x07", "bell\\x07"),
        ("one\r\ntwo", "one\\x0d\\x0atwo"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u2028b", "a\\u2028b"),
        ("exe\u202egpj", "exe\\u202egpj"),
        ("\u2066x\u2069\u061c", "\\u2066x\\u2069\\u061c"),
        ("\U000e0041", "\\U000e0041"),
        ("caf\udce9", "caf\\udce9"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("a\u00a0b", "a\u00a0b"),
    ],
)
def test_what_acts_is_escaped_and_what_is_plain_stays(text, shown):
    """Letters of every script stay; ESC, BEL, CR, LF, bidi controls and surrogates are spelled."""
    assert clean(text) == shown


@given(text=ANY_TEXT, most=st.integers(0, 60))
def test_any_text_becomes_one_harmless_line_of_bounded_length(text, most):
    """It encodes, breaks no line, and cleaned again is the same."""
    shown = clean(text, most)

    assert len(shown) <= most and clean(shown, most) == shown
    assert len(shown.splitlines()) <= 1 and isinstance(shown.encode(), bytes)
    assert not any(
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\u200c\u200d"
        for c in shown
    )


def test_a_text_that_is_cut_says_so():
    """However long it was."""
    assert clean("x" * 10**6, 10) == "x" * 7 + CUT_MARK
    assert clean("x" * 10, 10) == "x" * 10
