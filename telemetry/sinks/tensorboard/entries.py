"""Entries: plain tuples for the values of one row in one subdirectory, not yet encoded.

In: values that the policy chose.
Out: plain tuples, to be encoded and written.
Never: knows of protobufs or files.
"""

from __future__ import annotations

from typing import NamedTuple

from shared.events import Scalar


class Text(NamedTuple):
    """A text that TensorBoard shows as Markdown."""

    text: str


class Histogram(NamedTuple):
    """Counts between ascending edges; one edge more than counts."""

    edges: list[float]
    counts: list[float]


class ConfigStart(NamedTuple):
    """A session's configuration, for the HPARAMS tab."""

    config: dict[str, Scalar]


class ConfigEnd(NamedTuple):
    """The status with which the session of a ConfigStart ended."""

    status: str


class PanelLayout(NamedTuple):
    """A mark for the panels of the Custom Scalars tab, which are the same for every run."""


Extra = Text | Histogram | ConfigStart | ConfigEnd | PanelLayout


class Entry(NamedTuple):
    """One event of an event file: values that share a step and a time.

    scalars and extras are keyed by tag. Extras for the HPARAMS and the Custom Scalars
    tab have the fixed tags of those tabs.
    """

    directory: str
    step: int
    wall_ns: int
    scalars: dict[str, float]
    extras: list[tuple[str, Extra]]
