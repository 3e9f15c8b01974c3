"""Bounds of the TensorBoard sink. Tests lower them."""

from __future__ import annotations

from typing import NamedTuple


class Bounds(NamedTuple):
    """The bounds on what is remembered and buffered for one run.

    levels: subdirectories of a session. tags: tags of a level. tags_in_all: tags of all
    sessions. buffer_bytes: events between two syncs. lasts_bytes: a file of last steps that
    is shorter is not begun anew.
    """

    levels: int = 16
    tags: int = 100_000
    tags_in_all: int = 400_000
    buffer_bytes: int = 4 * 1024 * 1024
    lasts_bytes: int = 1024 * 1024


BOUNDS = Bounds()
