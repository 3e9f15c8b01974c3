"""Output: tables and lines of a command, printed so that any terminal can show them.

In: values and names, from producers as well.
Out: text on stdout, in one piece.
Never: markup, colours, or control characters from a producer.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from shared.text import clean

WIDTH: Final = 10_000
"""Width of a page in characters: so large that nothing is cut or wrapped here."""
LINE_MAX_CHARS: Final = 8_000


class OutputFailed(Exception):
    """The standard output can't be written to; the cause says why."""


class Page:
    """Lines and tables that are printed together at the end. Not thread-safe."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        encoding = sys.stdout.encoding or "utf-8"
        # Rich draws its tables with what the encoding has.
        self._text = io.TextIOWrapper(
            self._bytes, encoding, errors="backslashreplace", write_through=True
        )
        self._console = Console(
            file=self._text, width=WIDTH, markup=False, emoji=False, highlight=False,
            no_color=True, force_terminal=False,
        )  # fmt: skip

    def line(self, text: str) -> None:
        print(clean(text, LINE_MAX_CHARS), file=self._text)

    def aligned(self, names: list[str], are_right: list[bool], rows: list[list[str]]) -> None:
        """Add a table whose columns are aligned right where are_right says so."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name, is_right in zip(names, are_right, strict=True):
            table.add_column(name, no_wrap=True, justify="right" if is_right else "left")
        for row in rows:
            table.add_row(*(clean(cell, LINE_MAX_CHARS) for cell in row))
        self._console.print(table)

    def table(self, left: tuple[str, ...], right: tuple[str, ...], rows: list[list[Any]]) -> None:
        """Add a table; `left` and `right` name its columns by how they are aligned."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for names, justify in ((left, "left"), (right, "right")):
            for name in names:
                table.add_column(name, no_wrap=True, justify=justify)  # type: ignore[arg-type]
        for row in rows:
            table.add_row(*(clean(str(cell), LINE_MAX_CHARS) for cell in row))
        self._console.print(table)

    def print(self) -> None:
        """Write the page to stdout.

        Raises:
            OutputFailed: nobody takes it.
        """
        text = self._bytes.getvalue().decode(self._text.encoding, "replace")
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as exc:
            raise OutputFailed(str(exc)) from exc


def print_json(values: Iterable[Any]) -> None:
    """Write each value as one line of JSON to stdout; NaN and infinity become texts.

    Raises:
        OutputFailed: nobody takes it.
    """
    try:
        for value in values:
            sys.stdout.write(msgspec.json.encode(json_value(value)).decode() + "\n")
        sys.stdout.flush()
    except OSError as exc:
        raise OutputFailed(str(exc)) from exc


def json_value(value: Any) -> Any:
    """Return a value that JSON can hold; a number that JSON has no word for becomes a text."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(name): json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return value
