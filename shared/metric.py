"""Metric descriptions: name, unit and source of each metric, for the page that lists them.

A name may have places in angle brackets: `gpu/<index>/power_watts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple


class Metric(NamedTuple):
    """One metric, or several of one form."""

    name: str
    unit: str
    source: str
    """The call, file or formula that the value comes from, and when it is recorded."""


class MetricList:
    """Descriptions that names can be looked up in."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self.metrics = tuple(metrics)

    def described(self, name: str) -> list[Metric]:
        """Return the descriptions that a name fits: one, unless the list is wrong."""
        return [metric for metric, form in self._forms if form.fullmatch(name)]

    @cached_property
    def _forms(self) -> list[tuple[Metric, re.Pattern[str]]]:
        return [(metric, _form(metric.name)) for metric in self.metrics]


def _form(name: str) -> re.Pattern[str]:
    parts = re.split(r"<[^>]*>", name)
    return re.compile("[^/]+".join(map(re.escape, parts)))
