"""Entries: what one row becomes in one subdirectory, before it is encoded.

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
    """The end of the session of a ConfigStart."""

    status: str


class PanelLayout(NamedTuple):
    """The panels of the Custom Scalars tab; every run has the same."""


Extra = Text | Histogram | ConfigStart | ConfigEnd | PanelLayout


class Entry(NamedTuple):
    """One event of an event file: values that share a step and a time.

    scalars and extras are keyed by tag, except that what the HPARAMS and the
    Custom Scalars tab read has the fixed tags of those tabs.
    """

    directory: str
    step: int
    wall_ns: int
    scalars: dict[str, float]
    extras: list[tuple[str, Extra]]
